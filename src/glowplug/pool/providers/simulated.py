"""A provider of machines that exist on paper only: nothing is rented, everything else is as with a real one.

Its world may lie in a file, so that it outlives the process, as a cloud does. What becomes of an order
follows from the seed and the order's id alone. :class:`Faults` make it as bad as real ones are on their worst
days.
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.port import MachineState, Order, RequestRefused, Sighting, Verdict
from glowplug.types.errors import DeadlineExceeded, SystemUnfit, Unavailable

_FORGOTTEN_S = 600.0
_NEVER = 1e18
"""A moment that does not come, and that JSON can hold."""


@dataclass(frozen=True)
class Market:
    """What becomes of orders: lead times are log-normal around ``lead_time_s``, half of that is spent
    starting.

    ``capacity``: machines of one pool that exist at once at most; beyond it orders are refused.
    """

    lead_time_s: float = 60.0
    lead_time_spread: float = 0.3
    grant_probability: float = 1.0
    interruptions_per_h: float = 0.0
    capacity: int = 1_000_000
    unfit_probability: float = 0.0


@dataclass(frozen=True)
class Faults:
    """Chances, from 0 to 1, that a call or a machine goes wrong in a way."""

    request_hangs: float = 0.0
    """The call ends without an answer; the machine is made all the same, or not, at even chances."""
    grants_twice: float = 0.0
    never_comes: float = 0.0
    """Accepted, and never heard of again."""
    ignores_ids: float = 0.0
    """The same order asked for again makes a second machine."""
    listing_hangs: float = 0.0
    listing_empty: float = 0.0
    listing_lacks: float = 0.0
    """Of each machine: not in this listing."""
    terminate_hangs: float = 0.0
    terminate_ignored: float = 0.0
    """The call succeeds and nothing ends."""
    cancel_ignored: float = 0.0
    loses_tags: float = 0.0
    strangers: float = 0.0
    """Of each listing: a machine appears that nobody asked for."""


@dataclass(frozen=True)
class Paper:
    """One machine on paper. ``comes_at_s``: when it is up; it starts half a lead time before.

    ``ends_at_s``: when it is gone, by itself or because it was told to.
    """

    machine: str
    order: str
    fleet: str
    pool: PoolId
    asked_at_s: float
    starts_at_s: float
    comes_at_s: float
    refused_at_s: float = _NEVER
    ends_at_s: float = _NEVER
    why: str = ""
    is_fit: bool = True

    def state(self, now_s: float) -> MachineState:
        """What it is at a moment."""
        if now_s >= self.ends_at_s:
            return MachineState.GONE
        if now_s >= self.refused_at_s:
            return MachineState.REFUSED
        if now_s >= self.comes_at_s:
            return MachineState.UP
        return MachineState.STARTING if now_s >= self.starts_at_s else MachineState.PENDING


@dataclass
class _World:
    machines: dict[str, Paper] = field(default_factory=dict)
    made: int = 0


_ADAPTER = TypeAdapter(_World)


class SimulatedProvider:
    """Machines on paper, on the clock that is given. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        now_s: Callable[[], float],
        market: Market | None = None,
        faults: Faults | None = None,
        seed: int = 0,
        file: Path | None = None,
    ) -> None:
        self.name = name
        self.market = Market() if market is None else market
        self.faults = Faults() if faults is None else faults
        self._now_s = now_s
        self._seed = seed
        self._file = file
        self._chance = random.Random(seed)  # noqa: S311 - a simulation must be the same every time
        self._lock = threading.Lock()
        self._world = self._load()

    # -- the port --------------------------------------------------------------------------------------------

    def request(self, order: Order, timeout_s: float) -> None:
        """As the port says; raises RequestRefused beyond the capacity."""
        with self._lock:
            is_known = any(paper.order == order.id for paper in self._world.machines.values())
            if is_known and not self._happens(self.faults.ignores_ids):
                return
            if self._count(order.pool) >= self.market.capacity:
                raise RequestRefused(
                    f"{order.pool}: no capacity.", remedy="Wait, or ask elsewhere.", order=order.id
                )
            if self._happens(self.faults.request_hangs):
                if self._happens(0.5):
                    self._make(order)
                raise self._hang("request", timeout_s)
            self._make(order)
            if self._happens(self.faults.grants_twice):
                self._make(order)

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        """As the port says."""
        with self._lock:
            if self._happens(self.faults.listing_hangs):
                raise self._hang("machines", timeout_s)
            if self._happens(self.faults.strangers):
                self._make_stranger(fleet)
            if self._happens(self.faults.listing_empty):
                return []
            self._forget()
            return [
                self._sighting(paper)
                for paper in self._world.machines.values()
                if paper.fleet == fleet and not self._happens(self.faults.listing_lacks)
            ]

    def terminate(self, machine: str, timeout_s: float) -> None:
        """As the port says."""
        with self._lock:
            if self._happens(self.faults.terminate_hangs):
                raise self._hang("terminate", timeout_s)
            if not self._happens(self.faults.terminate_ignored):
                self._end(machine, "terminated")

    def cancel(self, order: str, timeout_s: float) -> None:
        """As the port says."""
        with self._lock:
            if self._happens(self.faults.terminate_hangs):
                raise self._hang("cancel", timeout_s)
            if not self._happens(self.faults.cancel_ignored):
                for paper in list(self._world.machines.values()):
                    if paper.order == order:
                        self._end(paper.machine, "cancelled")

    # -- the world -------------------------------------------------------------------------------------------

    def existing(self, fleet: str | None = None) -> list[Paper]:
        """Everything that is paid for now: it starts, or is up."""
        now_s = self._now_s()
        paid = (MachineState.STARTING, MachineState.UP)
        with self._lock:
            return [
                paper
                for paper in self._world.machines.values()
                if paper.state(now_s) in paid and fleet in (None, paper.fleet)
            ]

    def take(self, machine: str) -> None:
        """The machine is lost, as spot machines are."""
        with self._lock:
            self._end(machine, "interrupted")

    def is_fit(self, machine: str) -> bool | None:
        """What a health check would find; None if it does not answer."""
        with self._lock:
            paper = self._world.machines.get(machine)
            is_up = paper is not None and paper.state(self._now_s()) is MachineState.UP
            return paper.is_fit if paper is not None and is_up else None

    def _make(self, order: Order) -> None:
        self._world.made += 1
        machine = f"{self.name}-{self._world.made}"
        now_s, market = self._now_s(), self.market
        # From the seed and the id alone: what becomes of one order does not depend on any other.
        dice = random.Random(f"{self._seed}:{order.id}:{self._world.made}")  # noqa: S311
        lead_s = market.lead_time_s * math.exp(market.lead_time_spread * dice.gauss(0.0, 1.0))
        is_granted = dice.random() < market.grant_probability
        is_fit = dice.random() >= market.unfit_probability
        lived_s = (
            dice.expovariate(market.interruptions_per_h / 3600) if market.interruptions_per_h else _NEVER
        )
        comes_at_s = now_s + lead_s if is_granted else _NEVER
        refused_at_s = _NEVER if is_granted else now_s + lead_s
        if self._happens(self.faults.never_comes):
            comes_at_s = refused_at_s = _NEVER
        tag = "" if self._happens(self.faults.loses_tags) else order.id
        self._put(
            Paper(
                machine, tag, order.fleet, order.pool, now_s, comes_at_s - lead_s / 2, comes_at_s,
                refused_at_s, comes_at_s + lived_s, "" if is_granted else "no capacity", is_fit,
            )
        )  # fmt: skip

    def _make_stranger(self, fleet: str) -> None:
        self._world.made += 1
        machine, now_s = f"{self.name}-{self._world.made}", self._now_s()
        pool = next(
            (paper.pool for paper in self._world.machines.values()),
            PoolId(self.name, "nowhere", "unknown", Purchase.ON_DEMAND),
        )
        self._put(Paper(machine, "of-somebody-else", fleet, pool, now_s, now_s, now_s))

    def _end(self, machine: str, why: str) -> None:
        paper = self._world.machines.get(machine)
        if paper is not None and self._now_s() < paper.ends_at_s:
            self._put(replace(paper, ends_at_s=self._now_s(), why=why))

    def _count(self, pool: PoolId) -> int:
        now_s = self._now_s()
        over = (MachineState.GONE, MachineState.REFUSED)
        return sum(
            paper.pool == pool and paper.state(now_s) not in over for paper in self._world.machines.values()
        )

    def _sighting(self, paper: Paper) -> Sighting:
        state = paper.state(self._now_s())
        is_up = state is MachineState.UP
        return Sighting(
            paper.machine, paper.order, paper.pool, state,
            address=f"{paper.machine}.invalid" if is_up else "", reason=paper.why,
        )  # fmt: skip

    def _forget(self) -> None:
        now_s = self._now_s()
        for paper in list(self._world.machines.values()):
            if now_s - min(paper.ends_at_s, paper.refused_at_s) > _FORGOTTEN_S:
                del self._world.machines[paper.machine]

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._chance.random() < chance

    def _hang(self, stage: str, timeout_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.name} did not answer within {timeout_s:g} s (simulated).",
            remedy="It is asked again.",
            stage=stage,
        )

    # -- the file --------------------------------------------------------------------------------------------

    def _put(self, paper: Paper) -> None:
        self._world.machines[paper.machine] = paper
        self._save()

    def _save(self) -> None:
        if self._file is None:
            return
        fresh = self._file.with_name(f".{self._file.name}.new")
        try:
            with fresh.open("wb") as file:
                file.write(_ADAPTER.dump_json(self._world))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
        except OSError as problem:
            raise Unavailable(
                f"The simulated cloud {self.name} cannot be written: {problem}.",
                remedy="Check the disk and who may write there.",
                file=str(self._file),
            ) from problem

    def _load(self) -> _World:
        if self._file is None or not self._file.exists():
            return _World()
        try:
            return _ADAPTER.validate_json(self._file.read_bytes())
        except (OSError, ValidationError) as problem:
            raise SystemUnfit(
                f"The simulated cloud's file {self._file} cannot be used: {problem}.",
                remedy="Remove it: nothing is rented by it.",
                file=str(self._file),
            ) from problem


class SimulatedInspector:
    """Finds what the simulation says there is to be found."""

    def __init__(self, provider: SimulatedProvider) -> None:
        self._provider = provider

    def inspect(self, machine: str, address: str, gpu: str, gpus: int, timeout_s: float) -> Verdict:
        """At once."""
        is_fit = self._provider.is_fit(machine)
        if is_fit is None:
            return Verdict(False, "it does not answer (simulated)")
        return Verdict(True) if is_fit else Verdict(False, "Xid 79 on GPU 0 (simulated)")
