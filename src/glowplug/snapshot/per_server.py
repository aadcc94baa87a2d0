"""How many snapshots of one server a node keeps: each new version, and each new key, leaves one behind.

Of every server the most recently used stay, good ones before others; what no server keeps is removed. So the
latest good one of a server always stays, whether it runs or not, and so does what is in use at the moment.
What the region holds is not touched.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping

from glowplug.snapshot.store import SnapshotStore
from glowplug.types.errors import GlowplugError, InvalidInput
from glowplug.types.replica import SnapshotStatus, SnapshotView

VARIABLE = "GLOWPLUG_SNAPSHOTS_PER_SERVER"
KEPT = 4
"""The version that runs, the one before it to roll back to, and room for a second runtime or processor."""

_log = logging.getLogger(__name__)


def kept_from_environment(environ: Mapping[str, str] | None = None) -> int:
    """How many. Raises InvalidInput."""
    text = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    if not text:
        return KEPT
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise InvalidInput(
            f"{VARIABLE} is {text[:50]!r}.",
            remedy=f"Unset it ({KEPT}), or say how many snapshots of a server are kept, 1 at least.",
        )
    return int(text)


class PerServer:
    """Removes what is beyond ``kept`` when :meth:`run` is called; ``on_removed`` is told how many."""

    def __init__(self, snapshots: SnapshotStore, kept: int, on_removed: Callable[[int], object]) -> None:
        self._snapshots = snapshots
        self._kept = kept
        self._on_removed = on_removed

    def run(self) -> list[str]:
        """Ids of what was removed."""
        views = [
            view for view in self._snapshots.list() if view.used_at is not None
        ]  # the others say nothing
        kept = self._kept_ids(views)
        removed = []
        for view in views:
            if view.id in kept:
                continue
            try:
                self._snapshots.remove(view.id)
            except GlowplugError as problem:  # in use, or gone, or a disk that fails: the next round tells
                _log.warning("%s was not removed: %s", view.id, problem.message)
                continue
            _log.info("removed %s of %s: there are %d newer ones", view.id, view.servers, self._kept)
            removed.append(view.id)
        if removed:
            self._on_removed(len(removed))
        return removed

    def _kept_ids(self, views: list[SnapshotView]) -> set[str]:
        by_server: dict[str, list[SnapshotView]] = defaultdict(list)
        for view in sorted(views, key=_rank):
            for server in {f"{view.app}/{view.server}", *view.used_by}:
                by_server[server].append(view)
        return {view.id for found in by_server.values() for view in found[: self._kept]}


def _rank(view: SnapshotView) -> tuple[bool, float]:
    return (view.status is not SnapshotStatus.GOOD, -(view.used_at or 0.0))
