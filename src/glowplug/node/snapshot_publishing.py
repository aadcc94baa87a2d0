"""Bringing good snapshots to the region in the background, so that any node can restore them.

One at a time, at the lowest processor priority, and only if the region has no snapshot of that key: of two
nodes that captured the same server, the first to be done wins. What cannot be brought there is tried again a
few times, later each time, and with the next start of the agent.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, SnapshotInvalid
from glowplug.types.replica import SnapshotStatus

FIRST_RETRY_S = 30.0
TRIES = 5
_MOST_WAITING = 256
_LOWEST_PRIORITY = 19

_log = logging.getLogger(__name__)


class SnapshotPublishing:
    """``count`` hears whether each push succeeded. Its owner closes it."""

    def __init__(
        self, moves: SnapshotMoves, count: Callable[[bool], object], first_retry_s: float = FIRST_RETRY_S
    ) -> None:
        self._moves = moves
        self._count = count
        self._first_retry_s = first_retry_s
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._changed = threading.Condition()
        self._cancelled = threading.Event()
        self._worker = threading.Thread(target=self._work, name="snapshot-publishing", daemon=True)
        self._worker.start()

    def offer(self, snapshot_id: str) -> None:
        """Bring this one there when its turn comes. Of too many, the one that waited longest is left out."""
        with self._changed:
            self._waiting[snapshot_id] = None
            if len(self._waiting) > _MOST_WAITING:
                left_out, _ = self._waiting.popitem(last=False)
                _log.warning("%s is not brought to the region: too many wait", left_out)
            self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop, giving up the push under way: the next one goes on from where it was. May be called twice."""
        self._cancelled.set()
        with self._changed:
            self._changed.notify()
        self._worker.join(timeout_s)

    def _work(self) -> None:
        # The process that pushes inherits the priority of the thread that starts it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        self._offer_what_is_here()
        while (snapshot_id := self._next()) is not None:
            self._publish(snapshot_id)

    def _offer_what_is_here(self) -> None:
        """What an earlier agent did not come to."""
        for view in reversed(self._moves.snapshots.list()):
            if view.status is SnapshotStatus.GOOD and not view.is_in_region:
                self.offer(view.id)

    def _next(self) -> str | None:
        with self._changed:
            while not self._waiting and not self._cancelled.is_set():
                self._changed.wait()
            return None if self._cancelled.is_set() else self._waiting.popitem(last=False)[0]

    def _publish(self, snapshot_id: str) -> None:
        """Try a few times; other snapshots wait meanwhile, since the region would not take them either."""
        for attempt in range(TRIES):
            try:
                if not self._moves.region().has(snapshot_id):
                    self._moves.push(snapshot_id, lambda _text, _fraction: None, self._cancelled)
                    self._count(True)
                    _log.info("%s is in the region", snapshot_id)
                return
            except (NotFound, SnapshotInvalid, InvalidInput) as gone:  # removed, quarantined, or not sealed
                _log.info("%s is not brought to the region: %s", snapshot_id, gone.message)
                return
            except (GlowplugError, OSError) as problem:
                if self._cancelled.is_set():
                    return
                self._count(False)
                _log.warning("%s could not be brought to the region: %s", snapshot_id, problem)
                if self._cancelled.wait(self._first_retry_s * 2**attempt):
                    return
