"""The file a user writes for ``glowplug pool``: pools, prices, demand, limits. YAML, checked field by
field.

Paths are relative to the file. Every number has its unit in its name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.run_settings import RunSettings
from glowplug.pool.yaml_file import read_yaml

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Word = Annotated[str, Field(min_length=1, max_length=200)]
Usd = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=3.2e8, allow_inf_nan=False)]
Machines = Annotated[int, Field(ge=0, le=1_000_000)]
Gpus = Annotated[int, Field(ge=1, le=1_024)]
Slots = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Horizon(_Part):
    """How far to look, and how finely."""

    periods: int = Field(default=96, ge=1, le=2_000)
    first_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    last_s: float = Field(default=900.0, gt=0, allow_inf_nan=False)
    length_s: float = Field(default=21_600.0, gt=0, allow_inf_nan=False)


class PriceSource(_Part):
    """A price file; ``cloud`` is whose it is, for files that do not say."""

    file: Path
    cloud: Word


class PoolEntry(_Part):
    """One pool. Without ``price_usd_per_h`` the price files must have it; without ``gpu`` and ``gpus``, too.

    Without ``lead_time_s`` and ``interruptions_per_h`` the supply log's estimates hold, or what is usual.
    """

    cloud: Word
    region: Word
    machine: Word
    purchase: Purchase
    gpu: Word | None = None
    gpus: Gpus | None = None
    price_usd_per_h: Usd | None = None
    failure_domain: str = ""
    lead_time_s: Seconds | None = None
    grant_probability: Share = 1.0
    interruptions_per_h: float | None = Field(default=None, ge=0, le=1e6)
    up: Machines = 0
    locked_s: tuple[Seconds, ...] = ()
    quota: Machines
    min_rental_s: Seconds = 60.0
    request_usd: Usd = 0.05
    release_usd: Usd = 0.0
    interruption_usd: Usd = 0.5

    @property
    def id(self) -> PoolId:
        """What names it."""
        return PoolId(self.cloud, self.region, self.machine, self.purchase)


class RequestLog(_Part):
    """Requests of the past, from which demand is forecast."""

    file: Path
    requests_per_slot: int = Field(default=8, ge=1, le=100_000)
    prefill_tokens_per_s: float = Field(default=5_000.0, gt=0, allow_inf_nan=False)
    decode_tokens_per_s: float = Field(default=40.0, gt=0, allow_inf_nan=False)
    step_s: float = Field(default=10.0, gt=0, le=3_600)


class LiveRequests(_Part):
    """Requests as the router has them while the planner runs: of these apps, or servers as ``APP/SERVER``."""

    apps: tuple[Word, ...] = Field(min_length=1, max_length=1_000)
    requests_per_slot: int = Field(default=8, ge=1, le=100_000)
    step_s: float = Field(default=10.0, ge=2, le=3_600)


class ScheduleEntry(_Part):
    """At least so many slots between two times of day."""

    slots: Slots
    start: str = Field(default="00:00", alias="from", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    end: str = Field(default="24:00", alias="to", pattern=r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$")
    weekdays: tuple[Weekday, ...] = _WEEKDAYS
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as problem:
            raise ValueError(f"{name!r} is no time zone of this machine") from problem
        return name

    @property
    def span(self) -> tuple[int, int]:
        """From and to, minutes since midnight."""
        (first_h, first_m), (last_h, last_m) = (text.split(":") for text in (self.start, self.end))
        return int(first_h) * 60 + int(first_m), int(last_h) * 60 + int(last_m)

    @property
    def days(self) -> frozenset[int]:
        """0 is Monday."""
        return frozenset(_WEEKDAYS.index(day) for day in self.weekdays)


class DemandEntry(_Part):
    """A class of demand: replicas that need ``gpus`` GPUs of a kind; what is forecast, wished, and what
    missing costs. ``wait_s``: requests may wait so long, so that not every short peak needs room of its own.
    """

    gpu: Word
    gpus: Gpus = 1
    level: float = Field(default=0.95, ge=0.5, le=0.9999)
    up_to_level: float | None = Field(default=None, ge=0.5, le=0.9999)
    """Beyond ``level``, up to this one, slots are covered where that costs less than missing one does, times
    the chance that it is needed.
    """
    requests: RequestLog | None = None
    live: LiveRequests | None = None
    wait_s: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 0.0
    floor: Slots = 0.0
    expected_peak: Slots = 0.0
    schedules: tuple[ScheduleEntry, ...] = ()
    tolerated: Share = 0.0
    tolerated_miss_usd_per_h: Usd = 20.0
    miss_usd_per_h: Usd = 100.0

    @model_validator(mode="after")
    def _has_one_history(self) -> DemandEntry:
        if self.requests is not None and self.live is not None:
            raise ValueError("requests and live cannot both be its history")
        return self


class SurvivalEntry(_Part):
    """The share of a kind's demand that must be covered when its worst failure domain is lost."""

    share: Share
    exposed_usd_per_gpu_h: Usd = 10.0


class PlanFile(_Part):
    """All of it. ``now``: the moment to plan for, else the clock's."""

    version: Literal[1]
    now: datetime | None = None
    horizon: Horizon = Horizon()
    prices: tuple[PriceSource, ...] = ()
    max_price_age_s: Seconds = 172_800.0
    supply_log: Path | None = None
    budget_usd_per_h: Usd | None = None
    survive: dict[str, SurvivalEntry] = {}
    run: RunSettings = RunSettings()
    pools: tuple[PoolEntry, ...] = Field(min_length=1, max_length=10_000)
    demand: tuple[DemandEntry, ...] = Field(min_length=1, max_length=1_000)

    @model_validator(mode="after")
    def _lists_each_pool_once(self) -> PlanFile:
        seen: set[PoolId] = set()
        for pool in self.pools:
            if pool.id in seen:
                raise ValueError(f"pool {pool.id} is listed twice")
            seen.add(pool.id)
        return self

    def now_s(self, clock_s: float) -> float:
        """Unix time to plan for; a date without a time zone is in UTC."""
        if self.now is None:
            return clock_s
        return (self.now if self.now.tzinfo else self.now.replace(tzinfo=UTC)).timestamp()


def read_plan_file(path: Path) -> PlanFile:
    """Read and check it. Raises InvalidInput that names every field that is wrong."""
    return read_yaml(path, PlanFile, what="pool file", page="docs/pools.md", example="examples/pools/")
