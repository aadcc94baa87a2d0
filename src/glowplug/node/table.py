"""The replicas of this node as everybody else sees them, and the stream of what changes.

Lives on the agent's event loop. A watcher that does not keep up is cut off: it comes back and gets the whole
list again, which is cheaper for everybody than remembering what it missed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from glowplug.types.errors import NotFound
from glowplug.types.replica import MemoryView, ReplicaEvent, ReplicaView

HEARTBEAT_S = 1.0
_WATCHER_BACKLOG = 4096
_KEPT_FINAL = 200


class ReplicaTable:
    """All living replicas, and the last few that ended."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, ReplicaView] = OrderedDict()
        self._watchers: set[asyncio.Queue[ReplicaEvent | None]] = set()
        self._memory: MemoryView | None = None
        self._revision = time.time_ns()  # so that a later agent's are larger than an earlier one's

    def put(self, view: ReplicaView) -> ReplicaView:
        """Add or replace one replica and tell the watchers; as it is told, with its revision."""
        self._revision += 1
        view = view.model_copy(update={"revision": self._revision})
        self._views[view.id] = view
        self._views.move_to_end(view.id)
        self._forget_old()
        self._tell(ReplicaEvent(type="change", replica=view))
        return view

    def tell_memory(self, memory: MemoryView) -> None:
        """Tell the watchers how the machine's memory is: always while it is short, else once."""
        was_short = self._memory is None or self._memory.is_short
        self._memory = memory
        if memory.is_short or was_short:
            self._tell(ReplicaEvent(type="memory", memory=memory))

    def change(self, replica_id: str, **changes: Any) -> ReplicaView:
        """Replace some fields of one replica. Raises NotFound."""
        return self.put(self.get(replica_id).model_copy(update=changes))

    def find(self, replica_id: str) -> ReplicaView | None:
        """One replica, or None if it is not known (any more)."""
        return self._views.get(replica_id)

    def get(self, replica_id: str) -> ReplicaView:
        """One replica. Raises NotFound."""
        view = self._views.get(replica_id)
        if view is None:
            raise NotFound(
                f"There is no replica {replica_id} on this node.",
                remedy="`glowplug ps --all` lists them.",
                replica_id=replica_id,
            )
        return view

    def list(self) -> list[ReplicaView]:
        """All of them, longest unchanged first."""
        return list(self._views.values())

    async def watch(self) -> AsyncIterator[ReplicaEvent]:
        """What exists, then what changes, and a heartbeat each second. Ends when the watcher falls behind."""
        queue: asyncio.Queue[ReplicaEvent | None] = asyncio.Queue(_WATCHER_BACKLOG)
        existing = self.list()
        self._watchers.add(queue)
        try:
            for view in existing:
                yield ReplicaEvent(type="sync", replica=view)
            yield ReplicaEvent(type="synced")
            if self._memory is not None:
                yield ReplicaEvent(type="memory", memory=self._memory)
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), HEARTBEAT_S)
                except TimeoutError:
                    event = ReplicaEvent(type="heartbeat")
                if event is None:
                    return
                yield event
        finally:
            self._watchers.discard(queue)

    def end_watches(self) -> None:
        """Let every watch stream end: the agent is leaving."""
        for watcher in list(self._watchers):
            self._watchers.discard(watcher)
            while watcher.full():
                watcher.get_nowait()
            watcher.put_nowait(None)

    def _tell(self, event: ReplicaEvent) -> None:
        for watcher in list(self._watchers):
            try:
                watcher.put_nowait(event)
            except asyncio.QueueFull:
                self._watchers.discard(watcher)
                watcher.get_nowait()
                watcher.put_nowait(None)

    def _forget_old(self) -> None:
        final = [replica_id for replica_id, view in self._views.items() if view.state.is_final]
        for replica_id in final[: max(0, len(final) - _KEPT_FINAL)]:
            del self._views[replica_id]
