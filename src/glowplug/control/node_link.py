"""One node's agent, followed: its watch stream applied to the fleet, across the agent's restarts.

A link also knows what its node may be used for. The machine itself is told from its agent: an agent that is
away while its machine answers (a Unix socket that refuses, a gateway that says so) is being restarted, and
what runs there goes on; a machine that says nothing at all may be gone.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from contextlib import aclosing

from glowplug.control.fleet import Fleet
from glowplug.control.holdings import NOTHING, Holdings
from glowplug.control.timings import Timings
from glowplug.node.address import LocalNode
from glowplug.node.client import NodeClient
from glowplug.types.clock import Clock
from glowplug.types.cluster import NodeState
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.replica import MemoryView, NodeView, ReplicaEvent

log = logging.getLogger(__name__)

STARTS_ASKED_AT_ONCE = 16


class NodeLink:
    """Follows one agent. ``is_synced``: the fleet holds all it has. :meth:`run` is somebody's task."""

    def __init__(
        self,
        name: str,
        client: NodeClient,
        fleet: Fleet,
        *,
        clock: Clock,
        timings: Timings,
        labels: Mapping[str, str] | None = None,
        is_remembered: bool = True,
    ) -> None:
        self.name = name
        self.client = client
        self.labels = dict(labels or {})
        self.is_synced = False
        self.is_draining = False
        self.memory: MemoryView | None = None
        """What the agent said last about the node's memory; None while it says nothing."""
        self.view: NodeView | None = None
        """What the agent said last about the machine, where somebody asks (:meth:`look`)."""
        self.looked_at_s = -math.inf
        """When it was asked for what ``view`` and ``holdings`` say."""
        self.look_again_at_s = -math.inf
        self.holdings = NOTHING
        """The same of what makes starts there quicker."""
        self.ready_images: set[str] = set()
        """Images that its agent said it has, in the life it is in."""
        self.is_given_up = False
        """Its replicas were ended for its silence; until it speaks again."""
        self.is_doubted = False
        """Its replicas get no new requests for its silence; until it speaks again."""
        self.asking = asyncio.Semaphore(STARTS_ASKED_AT_ONCE)
        """Held by whoever asks it for a start: each is a connection, and an agent answers at once."""
        self._problem = "its agent has not answered yet"
        # On a machine that has just joined there is nothing of ours that we do not know.
        self._was_listed = not is_remembered
        self._fleet = fleet
        self._clock = clock
        self._timings = timings
        self._made_at_s = self._heard_at_s = clock.monotonic()
        fleet.addresses[name] = client.address

    # -- what it may be used for -----------------------------------------------------------------------------

    @property
    def is_own(self) -> bool:
        """It is the machine that we run on."""
        return isinstance(self.client.address, LocalNode)

    @property
    def silent_s(self) -> float:
        """How long the machine has said nothing. Our own is here as long as we are."""
        return 0.0 if self.is_own else self._clock.monotonic() - self._heard_at_s

    @property
    def is_silent(self) -> bool:
        """For so long that it is unreachable."""
        return self.silent_s >= self._timings.node_silent_s

    @property
    def is_lost(self) -> bool:
        """For so long that nobody waits for it."""
        return self.silent_s >= self._timings.node_lost_s

    @property
    def is_settled(self) -> bool:
        """What runs there is known, or has had its time to be told."""
        return self._was_listed or self._clock.monotonic() - self._made_at_s >= self._timings.node_lost_s

    @property
    def state(self) -> NodeState:
        """In one word."""
        if self.is_lost:
            return NodeState.LOST
        if self.is_silent or not self.is_synced:
            return NodeState.UNREACHABLE
        return NodeState.DRAINING if self.is_draining else NodeState.READY

    @property
    def why(self) -> str:
        """The reason for that state, for people; empty for a ready one."""
        match self.state:
            case NodeState.LOST:
                return f"silent for {self.silent_s:.0f} s: what ran there is started elsewhere"
            case NodeState.UNREACHABLE if self.is_silent:
                return f"silent for {self.silent_s:.0f} s"
            case NodeState.UNREACHABLE:
                return self._problem
            case NodeState.DRAINING:
                return "being drained: nothing new is placed there"
            case _:
                return ""

    # -- following -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled; come back with growing waits when the agent goes away."""
        wait_s = self._timings.reconnect_first_s
        while True:
            try:
                await self._follow()
            except GlowplugError as error:
                log.warning("agent of node %s: %s", self.name, error)
                self._problem = error.message
                if error.details.get("is_machine_there"):
                    self._heard()
            if self.is_synced:
                wait_s = self._timings.reconnect_first_s
            self.let_go()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, self._timings.reconnect_max_s)

    def let_go(self) -> None:
        """What the agent said is no longer so: it has to list everything anew."""
        self.is_synced, self.memory = False, None
        self.ready_images.clear()

    async def look(self) -> None:
        """Ask what the machine has and holds; what cannot be had stays as it was."""
        asked_at_s = self._clock.monotonic()
        try:
            self.view, self.looked_at_s = await self.client.node(), asked_at_s
            told = await self.client.holdings()
            if told is not self.holdings.told:
                self.holdings = Holdings(told)
        except GlowplugError as error:
            log.warning("node %s does not say what it has: %s", self.name, error)

    async def _follow(self) -> None:
        listed_at_s = self._clock.monotonic()
        present: set[str] = set()
        async with aclosing(self.client.watch()) as events:
            async for event in events:
                self._heard()
                self._apply(event, present)
                if event.type == "sync":
                    await asyncio.sleep(0)  # a long list keeps no request waiting
                if event.type == "synced":
                    self._fleet.synced(self.name, present, listed_at_s)
                    self.is_synced = self._was_listed = True
                    log.info("following node %s: %d replicas", self.name, len(present))
        raise Unavailable("The agent ended its watch stream.", remedy="It is restarted by glowplug up.")

    def _heard(self) -> None:
        self._heard_at_s = self._clock.monotonic()

    def _apply(self, event: ReplicaEvent, present: set[str]) -> None:
        if event.memory is not None:
            self.memory = event.memory
        if event.replica is None:
            return
        is_listed = event.type == "sync"
        if is_listed:
            present.add(event.replica.id)
        self._fleet.apply(self.name, event.replica, is_listed=is_listed)
