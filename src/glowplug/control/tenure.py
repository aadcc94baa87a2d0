"""A control plane's life from its start: standing by if it must, then leading, to the end.

It begins to lead once and never goes back: who is deposed ends, and its successor in the process table stands
by with nothing in its head. Where nobody else leads, the plane is there before the first request is taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Self

from glowplug.control.database import Database
from glowplug.control.leadership import Leadership
from glowplug.control.own_node import OwnNode
from glowplug.control.plane import ControlPlane
from glowplug.control.store import Store
from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.paths import StateDir

log = logging.getLogger(__name__)


class Tenure:
    """Owns the plane once we lead; an async context manager. ``on_plane`` is told when there is one.

    ``on_end`` is called when we should end and be started again: then ``is_broken``.
    """

    def __init__(
        self,
        state: StateDir,
        url: str,
        leadership: Leadership,
        *,
        own: OwnNode | None,
        clock: Clock,
        timings: Timings,
        has_agent: bool = True,
    ) -> None:
        self.is_broken = False
        self.on_plane: Callable[[ControlPlane], None] = lambda _plane: None
        self.on_end: Callable[[], None] = lambda: None
        self._state = state
        self._url = url
        self._leadership = leadership
        self._own = own
        self._clock = clock
        self._timings = timings
        self._has_agent = has_agent
        self._plane: ControlPlane | None = None
        self._following: asyncio.Task[None] | None = None
        leadership.on_deposed = self._end

    async def __aenter__(self) -> Self:
        if await self._leadership.try_to_lead():
            await self._begin()
        else:
            self._following = asyncio.get_running_loop().create_task(self._follow())
            self._following.add_done_callback(self._followed)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._plane is not None:
            await self._plane.__aexit__(*exc_info)

    async def _follow(self) -> None:
        await self._leadership.lead()
        await self._begin()

    def _followed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("this control plane could not begin to lead", exc_info=error)
            self._end()

    async def _begin(self) -> None:
        database = await asyncio.to_thread(Database, self._url, term=self._leadership.term)
        plane = ControlPlane(
            store=Store(database),
            leadership=self._leadership,
            agent_socket=self._state.agent_socket if self._has_agent else None,
            identity=self._state.identity,
            pools=self._state.pools,
            own=self._own,
            clock=self._clock,
            timings=self._timings,
        )
        plane.on_broken = self._end
        await plane.__aenter__()
        self._plane = plane
        self.on_plane(plane)

    def _end(self) -> None:
        self.is_broken = True
        self.on_end()
