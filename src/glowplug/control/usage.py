"""How long replicas served, started, stood idle or were parked: watched here, saved in spans of five minutes.

What every replica does is looked at four times a second, and the time since the look before counted as that.
So sums are right within a fraction of a second for each change; what a control plane that was away did not
see is not in them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.control.fleet import Fleet
from glowplug.control.replica_entry import Replica
from glowplug.control.slices import Slices
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import ReplicaState
from glowplug.types.usage import SPAN_S, UsageSpan, Use

log = logging.getLogger(__name__)

_LOOK_S = 0.25
_SAVE_S = 60.0
_SAVE_LAST_WITHIN_S = 5.0
_UNSAVED_LIMIT = 100_000
_LONGEST_LOOK_S = 5.0
"""A look that comes later than this was kept back with everything else: nothing is known of that time."""


_Seconds = dict[Use, float]


class UsageStore(Protocol):
    """Where spans go."""

    async def add_usage(self, batch: str, spans: list[UsageSpan]) -> None:
        """Add these seconds to what is known of the same spans: all of them or none, and each batch once.

        Raises GlowplugError.
        """
        ...


@dataclass(frozen=True)
class _Batch:
    """What goes to the store together, under one name however often it is sent."""

    name: str
    spans: list[UsageSpan]


class _Key(NamedTuple):
    app: str
    server: str
    gpu: str
    gpus: int


class UsageRecorder(Collector):
    """Adds up. :meth:`run` is somebody's task; :meth:`save_last` when that has ended."""

    def __init__(self, fleet: Fleet, store: UsageStore, clock: Clock, registry: CollectorRegistry) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._looked_at_s = clock.monotonic()
        self._unsaved: dict[tuple[_Key, float], _Seconds] = {}
        self._sending: _Batch | None = None
        self._totals: dict[_Key, _Seconds] = {}
        self._saving = asyncio.Lock()
        self._slices = Slices()
        self._failures = CounterMetric(
            "glowplug_usage_not_saved", "Times that usage could not be saved; it is kept.", registry=registry
        )
        self._lost_s = CounterMetric(
            "glowplug_usage_lost_seconds",
            "Replica-seconds that were not kept: too many others wait to be saved.",
            registry=registry,
        )
        registry.register(self)

    async def run(self) -> None:
        """Look and save until cancelled: a database that is away keeps nobody from looking."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_on())
            group.create_task(self._save_on())

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for _ in self._looks():
                await self._slices.rest()

    async def _save_on(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            await self.save()

    def look(self) -> None:
        """Count the time since the last look as what every replica does now."""
        for _ in self._looks():
            continue

    def _looks(self) -> Iterator[None]:
        """One server after the other."""
        now_s = self._clock.monotonic()
        elapsed_s = min(now_s - self._looked_at_s, _LONGEST_LOOK_S)
        self._looked_at_s = now_s
        starts_at = math.floor(self._clock.wall() / SPAN_S) * SPAN_S
        for target in list(self._fleet.targets()):
            yield
            resources = target.version.spec.resources
            chip = (resources.gpu or "").partition(":")[0]
            key = _Key(target.app, target.server, chip, resources.gpu_count)
            for use, replicas in Counter(map(use_of, target.replicas.values())).items():
                if use is not None:
                    self._keep((key, starts_at), use, elapsed_s * replicas)
                    self._totals.setdefault(key, _none())[use] += elapsed_s * replicas

    async def save(self) -> None:
        """Write down what is not saved yet. What cannot be is kept, logged and counted.

        A batch that was sent may have been saved although nobody said so: it is sent again as it is.
        """
        async with self._saving:
            while (batch := self._next_batch()) is not None:
                try:
                    await self._store.add_usage(batch.name, batch.spans)
                except GlowplugError as error:
                    log.error("usage is not saved, and kept: %s", error)
                    self._failures.inc()
                    return
                self._sending = None

    async def save_last(self) -> None:
        """Once more, before we end: within seconds, or not at all."""
        try:
            async with asyncio.timeout(_SAVE_LAST_WITHIN_S):
                await self.save()
        except TimeoutError:
            log.error("the last minute of usage is lost: the database does not answer")
            self._failures.inc()

    def _keep(self, span: tuple[_Key, float], use: Use, seconds: float) -> None:
        if span not in self._unsaved and len(self._unsaved) >= _UNSAVED_LIMIT:
            self._lost_s.inc(seconds)
            return
        self._unsaved.setdefault(span, _none())[use] += seconds

    def _next_batch(self) -> _Batch | None:
        if self._sending is None and self._unsaved:
            taken, self._unsaved = self._unsaved, {}
            spans = [_span(key, at_s, uses) for (key, at_s), uses in taken.items()]
            self._sending = _Batch(secrets.token_hex(8), spans)
        return self._sending

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
    if state is ReplicaState.READY and not replica.is_waking:  # most of them, four times a second
        return Use.SERVING if replica.in_flight else Use.IDLE
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
