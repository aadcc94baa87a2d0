"""How long replicas served, started, stood idle or were parked: watched here, saved in spans of five minutes.

What every replica does is looked at four times a second, and the time since the look before counted as that.
So sums are right within a fraction of a second for each change; what a control plane that was away did not
see is not in them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.control.fleet import Fleet
from glowplug.control.replica_entry import Replica
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import ReplicaState
from glowplug.types.usage import SPAN_S, UsageSpan, Use

log = logging.getLogger(__name__)

_LOOK_S = 0.25
_SAVE_S = 60.0
_LONGEST_LOOK_S = 5.0
"""A look that comes later than this was kept back with everything else: nothing is known of that time."""


_Seconds = dict[Use, float]


class UsageStore(Protocol):
    """Where spans go."""

    async def add_usage(self, spans: list[UsageSpan]) -> None:
        """Add these seconds to what is known of the same spans. All of them or none; raises GlowplugError."""
        ...


class _Key(NamedTuple):
    app: str
    server: str
    gpu: str
    gpus: int


class UsageRecorder(Collector):
    """Adds up. :meth:`run` is somebody's task; :meth:`save` once more when that has ended."""

    def __init__(self, fleet: Fleet, store: UsageStore, clock: Clock, registry: CollectorRegistry) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._looked_at_s = clock.monotonic()
        self._unsaved: dict[tuple[_Key, float], _Seconds] = {}
        self._totals: dict[_Key, _Seconds] = {}
        self._saving = asyncio.Lock()
        self._failures = CounterMetric(
            "glowplug_usage_not_saved", "Times that usage could not be saved; it is kept.", registry=registry
        )
        registry.register(self)

    async def run(self) -> None:
        """Look and save until cancelled."""
        saved_at_s = self._clock.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()
            if self._clock.monotonic() - saved_at_s >= _SAVE_S:
                await self.save()
                saved_at_s = self._clock.monotonic()

    def look(self) -> None:
        """Count the time since the last look as what every replica does now."""
        now_s = self._clock.monotonic()
        elapsed_s = min(now_s - self._looked_at_s, _LONGEST_LOOK_S)
        self._looked_at_s = now_s
        starts_at = math.floor(self._clock.wall() / SPAN_S) * SPAN_S
        for target in self._fleet.targets():
            resources = target.version.spec.resources
            chip = (resources.gpu or "").partition(":")[0]
            key = _Key(target.app, target.server, chip, resources.gpu_count)
            for replica in target.replicas.values():
                use = use_of(replica)
                if use is not None:
                    self._unsaved.setdefault((key, starts_at), _none())[use] += elapsed_s
                    self._totals.setdefault(key, _none())[use] += elapsed_s

    async def save(self) -> None:
        """Write down what is not saved yet. What cannot be is kept, logged and counted."""
        async with self._saving:
            taken, self._unsaved = self._unsaved, {}
            if not taken:
                return
            try:
                await self._store.add_usage([_span(key, at_s, uses) for (key, at_s), uses in taken.items()])
            except GlowplugError as error:
                log.error("usage is not saved, and kept: %s", error)
                self._failures.inc()
                for name, uses in taken.items():
                    kept = self._unsaved.setdefault(name, _none())
                    for use, seconds in uses.items():
                        kept[use] += seconds

    def collect(self) -> Iterable[Metric]:
        """Seconds since this process began."""
        labels = ("app", "server", "use")
        replicas = CounterMetricFamily(
            "glowplug_replica_use_seconds", "Replica-seconds by what replicas did.", labels=labels
        )
        gpus = CounterMetricFamily(
            "glowplug_gpu_use_seconds",
            "GPU-seconds by what replicas did; parked ones have none.",
            labels=labels,
        )
        for key, uses in self._totals.items():
            for use, seconds in uses.items():
                replicas.add_metric((key.app, key.server, use.value), seconds)
                if key.gpus and use is not Use.PARKED:
                    gpus.add_metric((key.app, key.server, use.value), seconds * key.gpus)
        yield from (replicas, gpus)


def _none() -> _Seconds:
    return dict.fromkeys(Use, 0.0)


def use_of(replica: Replica) -> Use | None:
    """What it does now; None once it is over."""
    state = replica.view.state
    if state.is_final:
        return None
    if state is ReplicaState.STARTING or replica.is_waking:
        return Use.STARTING
    if state is ReplicaState.PARKED:
        return Use.PARKED
    return Use.SERVING if replica.in_flight else Use.IDLE


def _span(key: _Key, starts_at: float, uses: _Seconds) -> UsageSpan:
    return UsageSpan(
        **key._asdict(), starts_at=starts_at, **{f"{use.value}_s": seconds for use, seconds in uses.items()}
    )
