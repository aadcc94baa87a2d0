"""Cold-start records: opened when a replica is needed, closed at its first answer, saved to the store.

The agent knows where the seconds between accepting a start and being ready went; only the router knows the
seconds before (from holding the request) and after (to the first byte of the answer). A record is both: the
first is added to ``allocate``, the last to ``first_answer``, so that the stages add up to ``total_s``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter as Tally
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Counter

from glowplug.observe.metrics import Metrics
from glowplug.observe.tracing import ColdStartTracer, NoTracer
from glowplug.types.clock import Clock
from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.errors import Conflict, GlowplugError, NotLeader, Unavailable
from glowplug.types.replica import ReplicaView, Stage, StartPath

log = logging.getLogger(__name__)

_UNSAVED_LIMIT = 10_000
_SAVED_WITHIN_S = 10.0
_RETRY_S = 1.0
_FLUSH_WITHIN_S = 3.0


class RecordStore(Protocol):
    """Where closed records go. Called from one task at a time."""

    async def add_cold_start(self, record: ColdStartRecord) -> None:
        """Keep the record; given twice, keep it once. Raises Unavailable for what may be tried again."""
        ...


@dataclass(eq=False)
class OpenColdStart:
    """A cold start under way. Monotonic seconds; ``posted_at_s`` is when the agent was asked."""

    id: str
    app: str
    server: str
    deployment_id: str
    opened_at_s: float
    started_at: float
    replica_id: str = ""
    node: str = ""
    posted_at_s: float | None = None
    ready_at_s: float | None = None
    fallback_reason: str | None = None
    """Why a hotter way (a parked replica) did not lead to the answer."""


class ColdStartLog:
    """Opens and closes records. :meth:`run` saves the closed ones and is somebody's task."""

    def __init__(
        self, store: RecordStore, clock: Clock, metrics: Metrics, tracer: ColdStartTracer | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._tracer = tracer or NoTracer()
        self._closed: asyncio.Queue[ColdStartRecord] = asyncio.Queue(_UNSAVED_LIMIT)
        self._saving: ColdStartRecord | None = None
        self._lost = Counter(
            "glowplug_cold_starts_lost", "Records that were never saved.", registry=metrics.registry
        )
        self._delays = Counter(
            "glowplug_cold_starts_delayed",
            "Times that a record had to wait for the database.",
            registry=metrics.registry,
        )

    def open(self, app: str, server: str, deployment_id: str) -> OpenColdStart:
        """A replica is needed now."""
        return OpenColdStart(
            id=secrets.token_hex(8),
            app=app,
            server=server,
            deployment_id=deployment_id,
            opened_at_s=self._clock.monotonic(),
            started_at=self._clock.wall(),
        )

    def answered(self, started: OpenColdStart, view: ReplicaView) -> None:
        """The first byte of the first answer is here."""
        now_s = self._clock.monotonic()
        stages = dict(view.stages_s)
        if started.posted_at_s is not None:
            waited_s = max(started.posted_at_s - started.opened_at_s, 0.0)
            stages[Stage.ALLOCATE] = stages.get(Stage.ALLOCATE, 0.0) + waited_s
        if started.ready_at_s is not None:
            answer_s = max(now_s - started.ready_at_s, 0.0)
            stages[Stage.FIRST_ANSWER] = stages.get(Stage.FIRST_ANSWER, 0.0) + answer_s
        self._close(started, Outcome.ANSWERED, view, stages, None)

    def failed(self, started: OpenColdStart, view: ReplicaView | None, *, error: str) -> None:
        """The start went wrong, or nobody could wait any longer."""
        self._close(started, Outcome.FAILED, view, dict(view.stages_s) if view else {}, error)

    def abandoned(self, started: OpenColdStart, view: ReplicaView | None = None) -> None:
        """Everybody who waited has gone away."""
        self._close(started, Outcome.ABANDONED, view, dict(view.stages_s) if view else {}, None)

    async def run(self) -> None:
        """Save closed records until cancelled; what is left then is saved by :meth:`flush`."""
        while True:
            if self._saving is None:
                self._saving = await self._closed.get()
            if await self._save(self._saving):
                self._saving = None
                self._closed.task_done()
            else:
                await asyncio.sleep(_RETRY_S)

    async def saved(self) -> None:
        """Wait until the store holds what is closed by now, a few seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SAVED_WITHIN_S):
                await self._closed.join()

    async def flush(self) -> None:
        """Save, within seconds, what is closed and not saved, and send its spans; :meth:`run` has ended."""
        left = [] if self._saving is None else [self._saving]
        while not self._closed.empty():
            left.append(self._closed.get_nowait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_WITHIN_S):
                while left and await self._save(left[0]):
                    left.pop(0)
        if left:
            self._lost.inc(len(left))
            log.error("%d cold-start records are lost: the database does not answer", len(left))
        await asyncio.to_thread(self._tracer.close)

    def _close(
        self,
        started: OpenColdStart,
        outcome: Outcome,
        view: ReplicaView | None,
        stages_s: dict[Stage, float],
        error: str | None,
    ) -> None:
        fallback_reason = started.fallback_reason or (view.fallback_reason if view else None)
        record = ColdStartRecord(
            id=started.id,
            app=started.app,
            server=started.server,
            deployment_id=started.deployment_id,
            replica_id=started.replica_id,
            node=started.node,
            path=view.path if view else StartPath.COLD,
            outcome=outcome,
            started_at=started.started_at,
            total_s=self._clock.monotonic() - started.opened_at_s,
            stages_s=stages_s,
            bytes_by_tier=_sum(view.image_bytes_by_tier, view.snapshot_bytes_by_tier) if view else {},
            chunks_by_tier=_sum(view.image_chunks_by_tier, view.snapshot_chunks_by_tier) if view else {},
            mounted_as=view.mounted_as if view else None,
            snapshot_id=view.snapshot_id if view else None,
            fallback_reason=fallback_reason,
            error=error,
        )
        self._metrics.observe_cold_start(record)
        self._tracer.record(record)
        if record.fallback_reason:
            self._metrics.count_fallback(record.fallback_reason)
        try:
            self._closed.put_nowait(record)
        except asyncio.QueueFull:
            self._lost.inc()
            log.error("cold-start record %s is lost: %d others wait to be saved", record.id, _UNSAVED_LIMIT)

    async def _save(self, record: ColdStartRecord) -> bool:
        """False: try again. What can never be saved is lost, logged and counted."""
        try:
            await self._store.add_cold_start(record)
        except Conflict:
            return True  # an earlier attempt, given up, was slower than this one
        except GlowplugError as error:
            if isinstance(error, Unavailable) and not isinstance(error, NotLeader):
                self._delays.inc()
                return False
            self._lost.inc()
            log.error("cold-start record %s is lost: %s", record.id, error)
        return True


def _sum(of_image: dict[str, int], of_snapshot: dict[str, int]) -> dict[str, int]:
    return dict(Tally(of_image) + Tally(of_snapshot))
