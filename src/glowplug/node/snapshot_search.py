"""Looking for a server's snapshot in the region when this node has none, without ever costing a start much.

A start waits at most :data:`WAIT_S` (``GLOWPLUG_REGION_WAIT``), whatever the region does; what comes later
is there for the next one. That the region has none is remembered for :data:`ABSENT_S`. A region that fails
or is slow is left alone for :data:`FAILED_S`, by all servers: starts are as cold as they would be without a
region, and no slower.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum

from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.stored import Snapshot
from glowplug.types.clock import Clock
from glowplug.types.environment import seconds_from
from glowplug.types.errors import DeadlineExceeded, GlowplugError, Unavailable

VARIABLE = "GLOWPLUG_REGION_WAIT"
WAIT_S = 2.0
"""Some five small objects are read one after the other; then the snapshot is known here."""

ABSENT_S = 30.0
FAILED_S = 30.0
_REMEMBERED = 1024
_THREADS = 4

_log = logging.getLogger(__name__)


def wait_from_environment(environ: Mapping[str, str] | None = None) -> float:
    """Seconds. Raises InvalidInput."""
    wait_s = seconds_from(VARIABLE, environ, what="a start waits for the region's answer", least_s=0.1)
    return WAIT_S if wait_s is None else wait_s


class SearchOutcome(StrEnum):
    """How a look into the region went; ``skipped``: not asked, because of what an earlier one said."""

    FOUND = "found"
    ABSENT = "absent"
    FAILED = "failed"
    LATE = "late"
    SKIPPED = "skipped"


class SnapshotSearch:
    """The searches of one node, one per key at a time. Safe from several threads.

    ``bring`` makes the region's snapshot of a key known here, or returns None if there is none; it may raise
    GlowplugError. ``count`` hears of every outcome.
    """

    def __init__(
        self,
        bring: Callable[[SnapshotKey], Snapshot | None],
        clock: Clock,
        count: Callable[[SearchOutcome], object],
        wait_s: float = WAIT_S,
    ) -> None:
        self._bring = bring
        self._clock = clock
        self._count = count
        self._wait_s = wait_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshot-search")
        self._lock = threading.Lock()
        self._searches: dict[str, Future[Snapshot | None]] = {}
        self._absent_until_s: OrderedDict[str, float] = OrderedDict()
        self._failed_until_s = float("-inf")

    def close(self) -> None:
        """Begin no more searches; those under way end by themselves. May be called twice."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def find(self, key: SnapshotKey) -> Snapshot | None:
        """The region's snapshot, known here now; None if it has none or was not asked.

        Raises Unavailable or DeadlineExceeded for a region that does not answer (in time), and what is wrong
        with the snapshot there.
        """
        search = self._begin(key)
        if search is None:
            self._count(SearchOutcome.SKIPPED)
            return None
        try:
            snapshot = search.result(self._wait_s)
        except TimeoutError:
            self._leave_alone()
            self._count(SearchOutcome.LATE)
            raise DeadlineExceeded(
                f"The region was asked for a snapshot and did not answer within {self._wait_s:g} s.",
                remedy=f"Look at the region; it is asked again in {FAILED_S:g} s.",
                stage="snapshot_search",
            ) from None
        except GlowplugError as error:
            self._count(SearchOutcome.FAILED)
            raise type(error)(
                f"The region was asked for a snapshot: {error.message}", remedy=error.remedy, **error.details
            ) from error
        self._count(SearchOutcome.FOUND if snapshot is not None else SearchOutcome.ABSENT)
        return snapshot

    def _begin(self, key: SnapshotKey) -> Future[Snapshot | None] | None:
        """The search for ``key``, new or under way; None if there is no sense in one now."""
        with self._lock:
            now_s = self._clock.monotonic()
            if now_s < self._failed_until_s or now_s < self._absent_until_s.get(key.id, now_s):
                return None
            search = self._searches.get(key.id)
            if search is None:
                search = self._searches[key.id] = self._threads.submit(self._search, key)
            return search

    def _search(self, key: SnapshotKey) -> Snapshot | None:
        try:
            snapshot = self._bring(key)
        except GlowplugError as error:
            _log.warning("looking for %s in the region: %s", key.id, error.message)
            if isinstance(error, Unavailable | DeadlineExceeded):
                self._leave_alone()
            else:  # what is there is no good, or this node has no room for it: others may do better
                self._note_absent(key.id)
            raise
        except Exception as bug:  # whatever it is, a cold start may still work
            _log.exception("looking for %s in the region: this should not happen", key.id)
            self._note_absent(key.id)
            raise Unavailable(f"{key.id} could not be taken over: {bug!r}.") from bug
        else:
            if snapshot is None:
                self._note_absent(key.id)
            return snapshot
        finally:
            with self._lock:
                del self._searches[key.id]

    def _leave_alone(self) -> None:
        with self._lock:
            self._failed_until_s = self._clock.monotonic() + FAILED_S

    def _note_absent(self, snapshot_id: str) -> None:
        with self._lock:
            self._absent_until_s[snapshot_id] = self._clock.monotonic() + ABSENT_S
            self._absent_until_s.move_to_end(snapshot_id)
            while len(self._absent_until_s) > _REMEMBERED:
                self._absent_until_s.popitem(last=False)
