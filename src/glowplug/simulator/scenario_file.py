"""The file of ``glowplug pool simulate``: a pool file, what the world is really like, and whom to compare.
YAML, checked field by field.

``plan`` is what ``glowplug pool plan`` reads, and all that the planner is told; ``market`` is the truth,
which it has to find out. Paths are relative to the file. Every number has its unit in its name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glowplug.pool.plan_file import PlanFile
from glowplug.pool.yaml_file import read_yaml
from glowplug.simulator.quantile_table import QuantileTable
from glowplug.types.spec import Scaling

Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
DemandSource = Literal["log", "live"]


class Part(BaseModel):
    """A part of the file: frozen, strict about unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FromFile(Part):
    """A log of requests, in the forms that pool files take."""

    path: Path
    prefill_tokens_per_s: Positive = 5_000.0
    decode_tokens_per_s: Positive = 40.0


class Bursts(Part):
    """Spans at which the rate is ``factor`` times as high: so many an hour, exponentially long."""

    per_h: NotNegative
    length_s: Positive
    factor: Positive


class Crowd(Part):
    """One span, ``at_h`` hours after the start, that nothing announces."""

    at_h: NotNegative
    length_s: Positive
    factor: Positive
    rise_s: NotNegative = 60.0


class MadeUp(Part):
    """Poisson requests around a day's swing. ``history_days`` before the start are seen by forecasts only."""

    per_s: Positive
    day_swing: Share = 0.0
    busiest_hour: float = Field(default=15.0, ge=0, lt=24)
    bursts: Bursts | None = None
    crowd: Crowd | None = None
    history_days: float = Field(default=0.0, ge=0, le=60)
    durations_s: QuantileTable = {}
    durations_like: FromFile | None = None

    @model_validator(mode="after")
    def _has_durations_once(self) -> MadeUp:
        if bool(self.durations_s) == (self.durations_like is not None):
            raise ValueError("give durations_s or durations_like, not both")
        return self


class TraceEntry(Part):
    """Where an app's requests come from: a file, or made up."""

    file: FromFile | None = None
    made_up: MadeUp | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> TraceEntry:
        if (self.file is None) == (self.made_up is None):
            raise ValueError("give file or made_up, not both")
        return self


class Starts(Part):
    """Seconds from an order to the first answer, by where a replica starts from.

    ``cold``: the first start ever, before there is a snapshot; ``region``: on a machine that has nothing of
    it; ``ssd``: on one that ran it before; ``parked``: frozen there. ``records``: what ``glowplug coldstarts
    --json`` printed: each path with at least ten answered starts replaces the table of that path.
    """

    cold: QuantileTable
    region: QuantileTable
    ssd: QuantileTable
    parked: QuantileTable = {0.0: 0.05, 1.0: 0.2}
    records: Path | None = None
    has_snapshot: bool = True
    """Captured before the simulation begins."""


class AppEntry(Part):
    """One app, on the demand class of the plan with the same ``gpu`` and ``gpus``.

    ``at_most_at_once``: requests that one replica takes; ``scaling.target_concurrency`` by default.
    ``on_cpu``: its slots are no GPUs, so that its replicas may be parked.
    """

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")
    gpu: str
    gpus: int = Field(default=1, ge=1, le=1_024)
    on_cpu: bool = False
    trace: TraceEntry
    starts: Starts
    scaling: Scaling = Scaling()
    at_most_at_once: int | None = Field(default=None, ge=1, le=100_000)
    hold_s: Positive = 600.0
    """A request waits so long at most, then it is lost."""

    @property
    def requests_at_once(self) -> int:
        """That one replica takes."""
        return self.at_most_at_once or self.scaling.target_concurrency


class MarketEntry(Part):
    """How a pool really behaves.

    ``lead_time_s``: from asking to being up. A request fails with chance ``1 - grant_probability``, beyond
    ``capacity`` machines, and in an outage; that is told after ``refusal_s``. Outages come
    ``outages_per_day`` and last ``outage_s`` on average; each takes a spot machine that is there with chance
    ``outage_takes``.
    """

    lead_time_s: QuantileTable = {0.0: 180.0, 0.5: 300.0, 0.9: 600.0, 1.0: 1_200.0}
    grant_probability: Share = 1.0
    refusal_s: NotNegative = 30.0
    interruptions_per_h: NotNegative = 0.0
    capacity: int = Field(default=1_000_000, ge=0, le=1_000_000)
    outages_per_day: NotNegative = 0.0
    outage_s: Positive = 1_800.0
    outage_takes: Share = 0.5


class Market(Part):
    """By the pool's name (``cloud/region/machine/purchase``); ``default`` for those that are not named."""

    default: MarketEntry = MarketEntry()
    pools: dict[str, MarketEntry] = {}


class TtlPolicy(Part):
    """Rent when a replica has no place; keep replica and machine so long after their last request.

    ``fill``: one more replica is wanted only when the others have all that they take (``at_most_at_once``)
    and not ``target_concurrency``: as the planner counts slots.
    """

    kind: Literal["ttl"]
    windows_s: tuple[Positive, ...] = (60.0, 300.0, 600.0, 1_200.0)
    fill: bool = False


class BufferPolicy(Part):
    """... and always so many idle GPUs of each kind."""

    kind: Literal["buffer"]
    gpus: tuple[int, ...] = (1, 2, 4, 8)
    fill: bool = False


class KnativePolicy(Part):
    """Replicas by Knative's autoscaler; machines for them, and as many idle GPUs."""

    kind: Literal["knative"]
    gpus: tuple[int, ...] = (0,)
    utilisation: float = Field(default=0.7, gt=0, le=1)


class HistogramPolicy(Part):
    """Replicas kept, and started again, by histograms of idle times (Shahrad et al. 2020)."""

    kind: Literal["hybrid_histogram"]


class SpotHedgePolicy(Part):
    """Spot machines over many pools, some too many; on-demand ones while those are not up (SkyServe,
    2025).
    """

    kind: Literal["spothedge"]
    extra_gpus: tuple[int, ...] = (1, 2, 4)


class PlannerPolicy(Part):
    """The pools' planner; once for each level at which it is to cover demand, and for each way to know it.

    From a ``log`` (arrivals, and how long replicas worked), or ``live`` (requests in flight, waiting, ended).
    """

    kind: Literal["planner"]
    levels: tuple[Annotated[float, Field(ge=0.5, le=0.9999)], ...] = ()
    """The plan's own levels when there are none."""
    demand_from: tuple[DemandSource, ...] = Field(default=("log",), min_length=1)


PolicyEntry = Annotated[
    TtlPolicy | BufferPolicy | KnativePolicy | HistogramPolicy | SpotHedgePolicy | PlannerPolicy,
    Field(discriminator="kind"),
]


class ScenarioFile(Part):
    """All of it. ``starts_at``: the first request of any log by default, or 2026-01-05 00:00 UTC."""

    version: Literal[1]
    starts_at: datetime | None = None
    skip_s: NotNegative = 0.0
    """So much of the logs' beginning is history: forecasts see it."""
    hours: float = Field(gt=0, le=24 * 366)
    warm_up_s: NotNegative = 0.0
    """So long from the start nothing counts: neither what is paid nor who waits."""
    look_s: float = Field(default=1.0, gt=0, le=60)
    """The autoscaler looks so often; at once when a request comes and nothing runs."""
    step_s: float = Field(default=10.0, ge=1, le=600)
    """How often baselines look at machines; the planner has its own period."""
    seeds: int = Field(default=1, ge=1, le=1_000)
    plan: PlanFile
    market: Market = Market()
    apps: tuple[AppEntry, ...] = Field(min_length=1, max_length=1_000)
    policies: tuple[PolicyEntry, ...] = Field(min_length=1, max_length=50)

    @model_validator(mode="after")
    def _fits_together(self) -> ScenarioFile:
        classes = {(demand.gpu, demand.gpus) for demand in self.plan.demand}
        for app in self.apps:
            if (app.gpu, app.gpus) not in classes:
                raise ValueError(f"app {app.name}: the plan has no demand of {app.gpus} {app.gpu}")
        for demand in self.plan.demand:
            if demand.requests is not None:
                raise ValueError(f"demand of {demand.gpu}: requests come from the apps, not from a file")
        if len({app.name for app in self.apps}) != len(self.apps):
            raise ValueError("two apps have one name")
        if self.warm_up_s >= 3_600 * self.hours:
            raise ValueError("warm_up_s leaves nothing of the hours")
        unknown = set(self.market.pools) - {str(pool.id) for pool in self.plan.pools}
        if unknown:
            raise ValueError(f"the plan has no pool {', '.join(sorted(unknown))}")
        return self

    def start_s(self, first_arrival_s: float | None) -> float:
        """Unix time at which the simulation begins."""
        if self.starts_at is not None:
            moment = self.starts_at if self.starts_at.tzinfo else self.starts_at.replace(tzinfo=UTC)
            return moment.timestamp()
        if first_arrival_s is not None:
            return first_arrival_s + self.skip_s
        return datetime(2026, 1, 5, tzinfo=UTC).timestamp()


def read_scenario_file(path: Path) -> ScenarioFile:
    """Read and check it. Raises InvalidInput that names every field that is wrong."""
    return read_yaml(path, ScenarioFile, what="scenario", page="docs/simulator.md", example="examples/pools/")
