"""Removing snapshots that nobody used for a long time, where an operator wants that.

``GLOWPLUG_SNAPSHOT_TTL`` says for how many seconds a snapshot may lie unused on a node. Its use is a restore,
tried or done, its capture, or a living replica of a server that it is for: that one will want it when it has
been scaled to zero. What the region holds is not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set

from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import Clock
from glowplug.types.environment import seconds_from
from glowplug.types.errors import GlowplugError

VARIABLE = "GLOWPLUG_SNAPSHOT_TTL"
LEAST_TTL_S = 60.0

_log = logging.getLogger(__name__)


def ttl_from_environment(environ: Mapping[str, str] | None = None) -> float | None:
    """Seconds, or None for ever. Raises InvalidInput."""
    return seconds_from(VARIABLE, environ, what="snapshots are kept", least_s=LEAST_TTL_S)


class Expiry:
    """Removes what was unused for ``ttl_s`` when :meth:`run` is called; ``on_removed`` is told how many."""

    def __init__(
        self, snapshots: SnapshotStore, ttl_s: float, clock: Clock, on_removed: Callable[[int], object]
    ) -> None:
        self._snapshots = snapshots
        self._ttl_s = ttl_s
        self._clock = clock
        self._on_removed = on_removed

    def run(self, living: Set[str]) -> list[str]:
        """Ids of what was removed; ``living`` are the servers (``app/server``) that have a replica now."""
        removed = []
        limit = self._clock.wall() - self._ttl_s
        for view in self._snapshots.list():
            servers = {f"{view.app}/{view.server}", *view.used_by}
            if view.used_at is None or view.used_at >= limit or not living.isdisjoint(servers):
                continue
            try:
                self._snapshots.remove(view.id)
            except GlowplugError as problem:  # in use, or gone, or a disk that fails: the next round tells
                _log.warning("%s was not removed: %s", view.id, problem.message)
                continue
            _log.info("removed %s of %s: nobody used it for %g s", view.id, servers, self._ttl_s)
            removed.append(view.id)
        if removed:
            self._on_removed(len(removed))
        return removed
