"""What a node told that it holds, kept so that one server's part is found at once.

A node tells of hundreds of snapshots, and there may be a hundred nodes: to read through all of it for every
start takes longer than a start should wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from glowplug.types.replica import HeldSnapshot, NodeHoldings


class Holdings:
    """``machine`` is the node's kind, ``images`` are bytes here by id, as in :class:`NodeHoldings`."""

    def __init__(self, told: NodeHoldings) -> None:
        self.told = told
        self.machine = told.machine
        self.images = told.images
        self._snapshots: dict[tuple[str, str], list[HeldSnapshot]] = {}
        for snapshot in told.snapshots:
            for server in snapshot.servers:
                self._snapshots.setdefault((server, snapshot.image_id), []).append(snapshot)

    def of(self, server: str, image_id: str) -> Sequence[HeldSnapshot]:
        """Snapshots of this server (``app/server``) in this image."""
        return self._snapshots.get((server, image_id), ())


NOTHING = Holdings(NodeHoldings())
"""Of a node that has not said yet."""
