"""One server of one app as a router on a node knows it: its replicas, and control for what they cannot."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from glowplug.control.destination import Counters
from glowplug.control.edge.upstream import Upstream
from glowplug.control.replica_entry import Replica
from glowplug.types.clock import Clock
from glowplug.types.errors import Unavailable
from glowplug.types.routes import ServerReport, ServerRoutes

_RETRY_AFTER_S = 1
_CONTROL_SUSPECT_S = 1.0


class EdgeServer:
    """A :class:`~glowplug.control.destination.Destination`. The table keeps ``replicas`` up to date."""

    def __init__(self, routes: ServerRoutes, upstream: Upstream, clock: Clock, rng: random.Random) -> None:
        self.routes = routes
        self.replicas: dict[str, Replica] = {}
        self.ready: list[Replica] = []
        self.counters = Counters()
        self.in_flight = 0
        """Those handed on, too."""
        self.told: ServerReport | None = None
        """What control was told last."""
        self._upstream = upstream
        self._control = upstream.place(routes.app, routes.server)
        self._clock = clock
        self._rng = rng
        self._started = 0
        self._peak = 0

    @property
    def name(self) -> str:
        """``app/server``, for messages."""
        return f"{self.routes.app}/{self.routes.server}"

    @property
    def request_timeout_s(self) -> float:
        """How long either side of a request may stand still."""
        return self.routes.request_timeout_s

    def recompute(self) -> None:
        """After any change of a replica."""
        self.ready = [replica for replica in self.replicas.values() if replica.is_serving]

    # -- requests ------------------------------------------------------------------------------------------

    def pick(self) -> Replica | None:
        """Of two ready replicas drawn by lot, the one that routers have fewer requests at.

        One that has ``target_concurrency`` is passed over while another has less, or control knows others.
        Where there is none, or none with room and control knows others, control itself. None while that
        cannot be reached either.
        """
        chosen = self._least_loaded()
        if chosen is None or (self.routes.has_others and not self._has_room(chosen)):
            if not self._upstream.is_suspect:
                self._upstream.handed_on += 1
                return self._control
            if chosen is None:
                return None
        self._started += 1
        return chosen

    async def wait(
        self, wait_for_disconnect: Callable[[], Awaitable[bool]], *, arrived_at_s: float, is_admitted: bool
    ) -> Replica:
        """Control holds requests, and cannot be reached: the caller must wait."""
        raise Unavailable(
            f"No replica of {self.name} can be reached from here, and neither can the control plane.",
            remedy="Send it again in a moment. If it lasts: does `glowplug cluster status` answer there?",
            retry_after_s=_RETRY_AFTER_S,
            control=self._upstream.url,
        )

    def suspect(self, replica: Replica, seconds: float) -> None:
        """The replica took no connection or broke one: avoid it for a while."""
        if replica is self._control:
            self._upstream.suspect(min(seconds, _CONTROL_SUSPECT_S))
        else:
            replica.suspect_until_s = max(replica.suspect_until_s, self._clock.monotonic() + seconds)

    def entered(self) -> None:
        """A request is in flight."""
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight - len(self._control.in_flight))

    def left(self) -> None:
        """A request is over."""
        self.in_flight -= 1

    def first_answer(self, replica: Replica) -> None:
        """Cold starts are control's to watch: who waits for one was handed on."""

    # -- reporting -----------------------------------------------------------------------------------------

    def report(self) -> ServerReport:
        """What is to be told of it now. The next one tells the peak from here on."""
        in_flight = {one.id: len(one.in_flight) for one in self.replicas.values() if one.in_flight}
        peak, self._peak = self._peak, sum(in_flight.values())
        return ServerReport(
            app=self.routes.app,
            server=self.routes.server,
            started=self._started,
            peak=peak,
            in_flight=in_flight,
        )

    # -- inside ------------------------------------------------------------------------------------

    def _least_loaded(self) -> Replica | None:
        ready = self.ready
        if len(ready) == 1 and not ready[0].suspect_until_s:
            return ready[0]
        now_s = self._clock.monotonic()
        usable = [replica for replica in ready if replica.suspect_until_s <= now_s]
        candidates = [replica for replica in usable if self._has_room(replica)] or usable
        if len(candidates) > 2:
            candidates = self._rng.sample(candidates, 2)
        return min(candidates, key=_load, default=None)

    def _has_room(self, replica: Replica) -> bool:
        return _load(replica) < self.routes.target_concurrency


def _load(replica: Replica) -> int:
    return len(replica.in_flight) + replica.elsewhere
