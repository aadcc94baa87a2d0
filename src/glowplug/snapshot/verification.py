"""Proving a snapshot's bytes while copies of it are restored: once for all that are restored at that time.

Several copies read the same pages of the page cache, so one reading of them proves all: four copies of 2 GB
at once would else hash 8 GB on the processors that they need themselves. Who joins late is told about bytes
that were read before its own restore began, from the same page cache; once nobody is waiting any more the
next restore begins a new one.
"""

from __future__ import annotations

import copy
import threading
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

from glowplug.snapshot.stored import Snapshot
from glowplug.types.errors import Conflict


@dataclass
class _UnderWay:
    """One reading, and who waits for its verdict."""

    stopped: threading.Event = field(default_factory=threading.Event)
    waiting: list[Future[None]] = field(default_factory=list)


class Verifications:
    """Those under way. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Path, _UnderWay] = {}

    def join(self, snapshot: Snapshot, executor: Executor) -> Future[None]:
        """The verdict to come: what :meth:`Snapshot.verify` raises, or None. It cannot be cancelled.

        Pin the snapshot until the future is done; :meth:`leave` is the way not to wait for all of it.
        """
        verdict: Future[None] = Future()
        verdict.set_running_or_notify_cancel()
        with self._lock:
            reading = self._under_way.get(snapshot.path)
            if reading is None:
                reading = self._under_way[snapshot.path] = _UnderWay()
                try:
                    executor.submit(self._run, snapshot, reading)
                except BaseException:
                    del self._under_way[snapshot.path]
                    raise
            reading.waiting.append(verdict)
        return verdict

    def leave(self, snapshot: Snapshot, verdict: Future[None]) -> None:
        """Its copy is not wanted any more: the future is done soon, with Conflict if not with the verdict."""
        with self._lock:
            reading = self._under_way.get(snapshot.path)
            if reading is None or verdict not in reading.waiting:
                return
            if len(reading.waiting) == 1:  # the reading itself ends it, when nothing is read any more
                del self._under_way[snapshot.path]
                reading.stopped.set()
                return
            reading.waiting.remove(verdict)
        verdict.set_exception(Conflict("The verification was left.", snapshot_id=snapshot.id))

    def _run(self, snapshot: Snapshot, reading: _UnderWay) -> None:
        failure: BaseException | None = None
        try:
            snapshot.verify(stopped=reading.stopped)
        except BaseException as error:  # noqa: BLE001 - the verdict, raised where it is waited for
            failure = error
        with self._lock:
            if self._under_way.get(snapshot.path) is reading:
                del self._under_way[snapshot.path]
        for verdict in reading.waiting:
            if failure is None:
                verdict.set_result(None)
            else:
                verdict.set_exception(copy.copy(failure))  # one shared would collect all their tracebacks
