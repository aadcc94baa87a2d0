"""Removing what a replica leaves, as often as it takes.

A sandbox that does not die at once (a hanging disk, a busy machine) must not keep a replica from ending: what
could not be removed is remembered and tried again by the agent's housekeeping, and, since the replica's
folder stays until everything else is gone, by the next agent.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from glowplug.node.container import remove_leftovers
from glowplug.node.runtimes import Runtimes
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

InThread = Callable[[Callable[[], None]], Awaitable[None]]

logger = logging.getLogger(__name__)


class Leftovers:
    """What is still to be removed on this node, by replica id."""

    def __init__(self, state: StateDir, runtimes: Runtimes, in_thread: InThread) -> None:
        self._state = state
        self._runtimes = runtimes
        self._in_thread = in_thread
        self._ids: set[str] = set()

    @property
    def ids(self) -> frozenset[str]:
        """Replicas of which something may be left."""
        return frozenset(self._ids)

    async def remove(self, replica_id: str) -> bool:
        """Remove every trace but the log; whether that worked. What is left is tried again."""
        try:
            await self._in_thread(lambda: remove_leftovers(self._state, self._runtimes, replica_id))
        except (GlowplugError, OSError) as problem:
            logger.error("cleaning up %s, will try again: %s", replica_id, problem)
            self._ids.add(replica_id)
            return False
        self._ids.discard(replica_id)
        return True

    async def retry(self) -> None:
        """Try again what did not work."""
        for replica_id in sorted(self._ids):
            await self.remove(replica_id)
