"""Whether a restore still pays: its bytes may come from far away, and a cold start may be quicker.

Judged by bytes per second, of what is missing on this node: a region that sends nothing is left after
:data:`SILENT_S`, a slow one as soon as what is left would take longer than a cold start is known to take. And
every restore has a deadline. Giving up fails what waits for bytes and kills the sandbox, so that whoever
restores notices at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from glowplug.node.start_times import StartTimes
from glowplug.snapshot.stored import Snapshot
from glowplug.types.clock import Clock
from glowplug.types.content import Fetching
from glowplug.types.errors import DeadlineExceeded, GlowplugError, Unavailable
from glowplug.types.spec import ServerSpec

SILENT_S = 3.0
"""Each read has been asked for twice by then, by connections of its own (see ``glowplug.chunks.pace``)."""
LEAST_BYTES_PER_S = 16 << 10
"""Less than this of everything that is fetched is silence."""
JUDGED_AFTER_S = 2.0
"""So long a region may take to come up to speed, or a tenth of a cold start if that is longer."""
SLACK_S = 1.0
"""An estimate that is off by as much is no reason to give up what has come."""
LEAST_DEADLINE_S = 30.0
COLD_STARTS = 2.0
"""A restore that takes as long as so many cold starts has failed."""
LEFT_ALONE_S = 30.0
_LOOK_S = 0.25

GiveUp = Callable[[], Awaitable[object]]
"""Makes a restore fail now: the reads that wait, and the sandbox."""

_log = logging.getLogger(__name__)


class TooFarAway(Unavailable):
    """The snapshot may be good, but its bytes do not come fast enough."""


class Judge:
    """How one restore's fetching goes. ``cold_s`` is how long a cold start takes, None if that is unknown."""

    def __init__(self, missing_bytes: int, cold_s: float | None, now_s: float, fetching: Fetching) -> None:
        self._missing_bytes = missing_bytes
        self._cold_s = cold_s
        self._began_s = now_s
        self._before_bytes = fetching.received_bytes
        self._seen = deque([(now_s, fetching.received_bytes)])

    def problem(self, now_s: float, fetching: Fetching) -> str | None:
        """Why a cold start is better from here on, or None."""
        came_bytes = fetching.received_bytes - self._before_bytes
        left_bytes = self._missing_bytes - came_bytes
        if left_bytes <= 0 or not fetching.in_flight or fetching.received_bytes < self._seen[-1][1]:
            self._seen.clear()  # nothing is waited for, or another daemon has begun to count
        self._seen.append((now_s, fetching.received_bytes))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= SILENT_S:
            self._seen.popleft()
        since_s, since_bytes = self._seen[0]
        span_s, span_bytes = now_s - since_s, fetching.received_bytes - since_bytes
        if span_bytes < LEAST_BYTES_PER_S * span_s:
            came = f"{_mb(came_bytes)} of {_mb(self._missing_bytes)} had come"
            words = f"the region sent {span_bytes} bytes in {span_s:.1f} s ({came})"
            return words if span_s >= SILENT_S else None
        left_s = left_bytes * span_s / span_bytes if span_bytes else 0.0
        if self._cold_s is None or left_s <= self._cold_s + SLACK_S:
            return None
        if span_s < JUDGED_AFTER_S or now_s - self._began_s < self._cold_s / 10:
            return None  # too early to say
        return (
            f"the region sends {span_bytes / span_s / 1e6:.2f} MB/s, so the other {_mb(left_bytes)} would "
            f"take {left_s:.0f} s, and a cold start takes {self._cold_s:.1f} s"
        )


class RestoreWatch:
    """One restore. ``problem`` is why it was given up, ``is_far`` whether it has to fetch anything."""

    def __init__(
        self,
        snapshot: Snapshot,
        cold_s: float | None,
        deadline_s: float,
        clock: Clock,
        give_up: GiveUp,
    ) -> None:
        self._snapshot = snapshot
        self._cold_s = cold_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._give_up = give_up
        self.problem: GlowplugError | None = None
        self.is_far = False
        self._began: Fetching | None = None

    async def begin(self) -> None:
        """Note what has failed so far. Before the restore reads: :meth:`run` may see its failures late."""
        self._began = await asyncio.to_thread(self._snapshot.fetching)

    async def run(self) -> None:
        """Look until the restore is given up, or this is cancelled."""
        ends_s = self._clock.monotonic() + self._deadline_s
        missing_bytes = await asyncio.to_thread(self._snapshot.missing_bytes)
        self.is_far = missing_bytes > 0
        judge: Judge | None = None
        while self.problem is None:
            if self.is_far:
                fetching = await asyncio.to_thread(self._snapshot.fetching)
                now_s = self._clock.monotonic()
                if judge is None:
                    judge = Judge(missing_bytes, self._cold_s, now_s, fetching)
                if words := judge.problem(now_s, fetching):
                    self.problem = self._too_far(words)
            if self.problem is None and self._clock.monotonic() >= ends_s:
                self.problem = self._too_late()
            await asyncio.sleep(_LOOK_S if self.problem is None else 0.0)
        _log.warning("giving up the restore of %s: %s", self._snapshot.id, self.problem.message)
        await self._give_up()

    async def explain(self) -> None:
        """After a failure: bytes that nobody gave are its reason, unless some came and were wrong."""
        if self._began is None or self.problem is not None:
            return
        now = await asyncio.to_thread(self._snapshot.fetching)
        count = now.failed - self._began.failed
        if count <= 0 or now.invalid != self._began.invalid:
            return
        if await asyncio.to_thread(self._snapshot.missing_bytes):  # else pieces of other content failed
            self.problem = self._too_far(f"the region sent no answer of use for {count} pieces")

    def _too_far(self, words: str) -> TooFarAway:
        return TooFarAway(
            words, remedy="Look at the region, the zone and the network between.", stage="fetch"
        )

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"it was not ready within the deadline of {self._deadline_s:g} s",
            remedy="The agent's and the replica's log may tell what it waited for.",
            stage="restore",
        )


class RestoreWatches:
    """What the watches of one node have in common: how long cold starts take, and whom to leave alone."""

    def __init__(self, start_times: StartTimes, clock: Clock) -> None:
        self._start_times = start_times
        self._clock = clock
        self._far_until_s: dict[str, float] = {}

    @asynccontextmanager
    async def over(
        self, snapshot: Snapshot, server: ServerSpec, give_up: GiveUp
    ) -> AsyncIterator[RestoreWatch]:
        """Inside, a restore that does not pay is made to fail; then the watch's reason is raised."""
        watch = self._watch(snapshot, server, give_up)
        await watch.begin()
        looking = asyncio.create_task(watch.run())
        failure: Exception | None = None
        try:
            yield watch
        except Exception as error:  # noqa: BLE001 - raised below, unless the watch explains it
            failure = error
        finally:
            looking.cancel()
            (ended,) = await asyncio.gather(looking, return_exceptions=True)
            if isinstance(ended, Exception):  # it costs the watch, and nothing else
                _log.error("watching %s: this should not happen", snapshot.id, exc_info=ended)
        if failure is not None:
            await watch.explain()
        if watch.problem is not None:
            raise watch.problem from failure
        if failure is not None:
            raise failure

    def _watch(self, snapshot: Snapshot, server: ServerSpec, give_up: GiveUp) -> RestoreWatch:
        cold_s = self._start_times.cold_s(snapshot.id)
        if cold_s is None:
            cold_s = snapshot.manifest.timings.cold_s
        longest_s = server.startup_timeout_s if cold_s is None else COLD_STARTS * cold_s
        return RestoreWatch(snapshot, cold_s, max(longest_s, LEAST_DEADLINE_S), self._clock, give_up)

    def note_far(self, snapshot_id: str) -> None:
        """Its bytes did not come fast enough: do not try that again for a while."""
        now_s = self._clock.monotonic()
        self._far_until_s = {known: ends_s for known, ends_s in self._far_until_s.items() if ends_s > now_s}
        self._far_until_s[snapshot_id] = now_s + LEFT_ALONE_S

    def why_not_now(self, snapshot: Snapshot) -> str | None:
        """Why not to restore it at the moment, or None."""
        left_s = self._far_until_s.get(snapshot.id, 0.0) - self._clock.monotonic()
        if left_s <= 0 or not snapshot.missing_bytes():
            return None
        return f"the region sent its bytes too slowly a moment ago; it is tried again in {left_s:.0f} s"


def _mb(count: int) -> str:
    return f"{max(count, 0) / 1e6:.1f} MB"
