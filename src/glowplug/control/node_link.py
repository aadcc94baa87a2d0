"""One node's agent, followed: its watch stream applied to the fleet, across the agent's restarts."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from glowplug.control.fleet import Fleet
from glowplug.control.timings import Timings
from glowplug.node.client import NodeClient
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.replica import MemoryView, ReplicaEvent

log = logging.getLogger(__name__)


class NodeLink:
    """Follows one agent. ``is_synced``: the fleet holds all it has. :meth:`run` is somebody's task."""

    def __init__(
        self, name: str, client: NodeClient, fleet: Fleet, *, clock: Clock, timings: Timings
    ) -> None:
        self.name = name
        self.client = client
        self.is_synced = False
        self.memory: MemoryView | None = None
        """What the agent said last about the node's memory; None while it says nothing."""
        self._fleet = fleet
        self._clock = clock
        self._timings = timings

    async def run(self) -> None:
        """Watch until cancelled; come back with growing waits when the agent goes away."""
        wait_s = self._timings.reconnect_first_s
        while True:
            try:
                await self._follow()
            except GlowplugError as error:
                log.warning("agent of node %s: %s", self.name, error)
            if self.is_synced:
                wait_s = self._timings.reconnect_first_s
            self.is_synced, self.memory = False, None
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, self._timings.reconnect_max_s)

    async def _follow(self) -> None:
        listed_at_s = self._clock.monotonic()
        present: set[str] = set()
        async with aclosing(self.client.watch()) as events:
            async for event in events:
                self._apply(event, present)
                if event.type == "synced":
                    self._fleet.synced(self.name, present, listed_at_s)
                    self.is_synced = True
                    log.info("following node %s: %d replicas", self.name, len(present))
        raise Unavailable("The agent ended its watch stream.", remedy="It is restarted by glowplug up.")

    def _apply(self, event: ReplicaEvent, present: set[str]) -> None:
        if event.memory is not None:
            self.memory = event.memory
        if event.replica is None:
            return
        is_listed = event.type == "sync"
        if is_listed:
            present.add(event.replica.id)
        self._fleet.apply(self.name, event.replica, is_listed=is_listed)
