"""Keeping the SSD tier within its budget, and its disk from staying full, without looking at every put.

Room is made in portions, for the puts that follow too. When everything is pinned, that is remembered for a
moment: the bytes that cannot be kept are still delivered, and must not each cost a look at the whole index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glowplug.chunks import ssd_errors
from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.chunks.ssd_ballast import Ballast
from glowplug.chunks.ssd_prune import Pruner
from glowplug.types.clock import Clock
from glowplug.types.errors import ResourceExhausted

_HEADROOM = 20  # a put that finds the budget used up makes a twentieth of it free
_HEADROOM_ON_DISK = 8
_MIN_HEADROOM_ON_DISK_BYTES = 4 * CHUNK_BYTES
_LOOK_EVERY = 1024  # puts; other processes fill the same store
_LOOK_EVERY_BYTES = CHUNK_BYTES
_FULL_FOR_S = 1.0


class Room:
    """``used_bytes`` tells what is taken, also by what is not committed yet; ``commit`` commits it."""

    def __init__(
        self,
        root: Path,
        budget_bytes: int | None,
        pruner: Pruner,
        ballast: Ballast,
        *,
        used_bytes: Callable[[], int],
        commit: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._root = root
        self._budget_bytes = budget_bytes
        self._pruner = pruner
        self._ballast = ballast
        self._used_bytes = used_bytes
        self._commit = commit
        self._clock = clock
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        # Another one, since the first is held while rows are committed, which may need room on the disk.
        self._on_disk = threading.Lock()
        self._estimate_bytes = 0
        self._in_flight_bytes = 0
        self._puts = _LOOK_EVERY
        self._unchecked_bytes = _LOOK_EVERY_BYTES
        self._disk_prunes = 0
        self._full_until_s = float("-inf")

    @contextmanager
    def taken(self, room_bytes: int) -> Iterator[None]:
        """Have this much within the budget, and count it until the block's end. Raises ResourceExhausted."""
        if self._budget_bytes is None:
            yield
            return
        self._add_in_flight(room_bytes)
        try:
            with self._lock:
                self._take(self._budget_bytes, room_bytes)
            yield
        finally:
            self._add_in_flight(-room_bytes)

    def _add_in_flight(self, room_bytes: int) -> None:
        with self._counting:
            self._in_flight_bytes += room_bytes

    def check_disk(self, room_bytes: int) -> None:
        """Raise ResourceExhausted when the disk has not more room than is to be left free."""
        self._unchecked_bytes += room_bytes  # lost additions of other threads do not matter
        if self._unchecked_bytes < _LOOK_EVERY_BYTES:
            return
        if self._ballast.lacking_bytes() > 0:
            raise ssd_errors.full(self._root)
        self._unchecked_bytes = 0

    def make_on_disk(self) -> None:
        """Have some room on a full disk. Raises ResourceExhausted if nothing may be removed."""
        if self._clock.monotonic() < self._full_until_s:
            raise ssd_errors.full(self._root)
        with suppress(ResourceExhausted):  # only what is committed can be removed
            self._commit()
        if not self.make_for_commit():
            self._full_until_s = self._clock.monotonic() + _FULL_FOR_S
            raise ssd_errors.full(self._root)

    def make_for_commit(self) -> bool:
        """Have some room on a full disk to commit what was written; False if nothing may be removed."""
        prunes = self._disk_prunes
        with self._on_disk:
            if self._disk_prunes != prunes:
                return True  # another thread has just done it
            used_bytes = self._used_bytes()
            headroom_bytes = max(
                used_bytes // _HEADROOM_ON_DISK, _MIN_HEADROOM_ON_DISK_BYTES, self._ballast.lacking_bytes()
            )
            pruned = self._pruner.prune(max(0, used_bytes - headroom_bytes))
            self._disk_prunes += pruned.removed_chunks > 0
            with suppress(OSError):
                self._ballast.restore()
            return pruned.removed_chunks > 0

    def changed(self) -> None:
        """Something was unpinned or removed: look again."""
        self._full_until_s = float("-inf")

    def _take(self, budget_bytes: int, room_bytes: int) -> None:
        self._puts += 1
        self._estimate_bytes += room_bytes
        if self._puts > _LOOK_EVERY or self._estimate_bytes > budget_bytes:
            self._look()
        if self._estimate_bytes > budget_bytes and not self._prune(budget_bytes, room_bytes):
            raise ssd_errors.over_budget(self._root, budget_bytes)

    def _look(self) -> None:
        """See what others have put and removed. What is in flight may be counted twice for a moment."""
        self._puts = 0
        self._estimate_bytes = self._used_bytes() + self._in_flight_bytes

    def _prune(self, budget_bytes: int, room_bytes: int) -> bool:
        """Whether there is room now, for all that is in flight."""
        if room_bytes > budget_bytes or self._clock.monotonic() < self._full_until_s:
            return False
        with suppress(ResourceExhausted):  # what cannot be committed is not in the way of removing others
            self._commit()
        in_flight_bytes = self._in_flight_bytes
        wanted_bytes = max(0, budget_bytes - max(in_flight_bytes, budget_bytes // _HEADROOM))
        used_bytes = self._pruner.prune(wanted_bytes).used_bytes
        self._look()
        if used_bytes <= max(wanted_bytes, budget_bytes - in_flight_bytes):
            return True
        self._full_until_s = self._clock.monotonic() + _FULL_FOR_S
        return False
