"""One node's router, followed: told where requests may go, counted, and waited for before a replica goes.

Control opens the connection, through the node's gateway, and keeps it; whoever leads does. So routers need
not know who leads, and nobody but control can tell them anything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping

from glowplug.control.cluster_keys import ClusterKeys
from glowplug.control.fleet import Fleet
from glowplug.control.messages import RouterState, RouterStatus
from glowplug.control.route_book import RouteBook
from glowplug.control.router_counts import RouterCounts
from glowplug.control.timings import Timings
from glowplug.identity.roles import ROUTER_LIFE_S
from glowplug.node.address import RemoteNode
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, NotFound, Unavailable
from glowplug.types.routes import MAX_REPORT_BYTES, SILENCE_LIMIT_S, RouterHello, RouterReport, RouteUpdate

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_ABSENT_MAX_S = 30.0
"""Where the node says that no router runs there, it is asked again at least this often."""


class RouterLink:
    """Follows the router of the node at ``address``. :meth:`run` is somebody's task; :meth:`hurry` wakes it.

    ``is_settled`` says whether the fleet is known well enough to tell of it. ``on_report`` is called when the
    router has told something, or is not waited for any more.
    """

    def __init__(
        self,
        address: RemoteNode,
        fleet: Fleet,
        book: RouteBook,
        keys: ClusterKeys,
        *,
        term: int,
        control_url: str | None,
        is_settled: Callable[[], bool],
        on_report: Callable[[], None],
        clock: Clock,
        timings: Timings,
    ) -> None:
        self.address = address
        self.is_given_up = False
        """It cannot be asked, and is not waited for; until it can."""
        self._fleet = fleet
        self._book = book
        self._keys = keys
        self._term = term
        self._control_url = control_url
        self._is_settled = is_settled
        self._on_report = on_report
        self._clock = clock
        self._timings = timings
        self._counts = RouterCounts(fleet)
        self._changed = asyncio.Event()
        self._outstanding: dict[str, int] = {}
        self._hello: RouterHello | None = None
        self._counted_boot = ""
        self._is_connected = False
        self._is_absent = False
        self._acknowledged = -1
        self._heard_at_s = -math.inf
        self._away_since_s = clock.monotonic()

    # -- what others want to know ----------------------------------------------------------------------------

    @property
    def may_have_requests(self) -> bool:
        """It runs, or may run for all we know, and so may send requests to what it was told of."""
        if self._is_connected:
            return True
        waited_s = self._clock.monotonic() - self._away_since_s
        is_waited_for = waited_s < self._timings.router_patience_s
        return is_waited_for and not self._is_absent and not self.is_given_up

    @property
    def state(self) -> RouterState:
        """In one word."""
        if self._is_connected:
            return RouterState.FOLLOWING
        return RouterState.ABSENT if self._is_absent else RouterState.AWAY

    def status(self) -> RouterStatus:
        """For people."""
        heard_s = self._clock.monotonic() - self._heard_at_s
        return RouterStatus(
            state=self.state,
            address=self._hello.address if self._hello else None,
            table_age_s=heard_s if math.isfinite(heard_s) else None,
            in_flight=self._counts.in_flight,
        )

    def has_acknowledged(self, version: int) -> bool:
        """It has applied that version of the table, and told what it had in flight since."""
        return self._acknowledged >= version

    def hurry(self) -> None:
        """There is something new to tell."""
        self._changed.set()

    def note_outstanding(self, changed: Mapping[str, int]) -> None:
        """What all routers together have at these replicas; told with the next beat."""
        if self._is_connected:
            self._outstanding.update(changed)

    def forget(self) -> None:
        """It cannot have any request under way, or nobody waits for them any more."""
        self._counts.clear()
        self._on_report()

    # -- following -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow it until cancelled; come back with growing waits."""
        wait_s = self._timings.reconnect_first_s
        while True:
            try:
                await self._follow()
            except (GlowplugError, OSError, TimeoutError, ValueError) as error:
                self._left(error)
            if self._is_connected:
                self._is_connected = False
                self._away_since_s = self._clock.monotonic()
                wait_s = self._timings.reconnect_first_s
            longest_s = _ABSENT_MAX_S if self._is_absent else self._timings.reconnect_max_s
            await asyncio.sleep(min(wait_s, longest_s))
            wait_s = min(wait_s * 2, longest_s)

    def _left(self, error: Exception) -> None:
        if self._is_connected:
            log.warning("the router of node %s: %s", self.address.name, error)
        if isinstance(error, NotFound) and not self._is_absent:
            # Its process has ended, and with it what it had under way; the next knows only what we tell it.
            log.info("no router runs on node %s", self.address.name)
            self._is_absent = True
            self.forget()

    async def _follow(self) -> None:
        contexts = await self._keys.contexts()
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                self.address.host,
                self.address.port,
                ssl=contexts.routes,
                server_hostname=self.address.name,
                limit=MAX_REPORT_BYTES,
            )
        try:
            hello = _parse_hello(await _line(reader))
            self._begin(hello)
            telling = asyncio.get_running_loop().create_task(self._tell(writer, hello))
            telling.add_done_callback(lambda _: writer.transport.abort())
            try:
                await self._listen(reader, hello)
            finally:
                telling.cancel()
                (outcome,) = await asyncio.gather(telling, return_exceptions=True)
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    log.error("telling the router of %s broke", self.address.name, exc_info=outcome)
        finally:
            writer.transport.abort()

    def _begin(self, hello: RouterHello) -> None:
        if self._hello is not None and self._hello.boot != hello.boot:
            self._counts.clear()  # of a life that is over
            self._counts = RouterCounts(self._fleet)
        self._hello, self._outstanding = hello, {}
        self._is_connected, self._is_absent, self.is_given_up = True, False, False
        self._heard_at_s = self._clock.monotonic()
        log.info("following the router of node %s at %s", self.address.name, hello.address)

    async def _listen(self, reader: asyncio.StreamReader, hello: RouterHello) -> None:
        while True:
            report = RouterReport.model_validate_json(await _line(reader))
            self._heard_at_s = self._clock.monotonic()
            self._counts.apply(report, is_first=self._counted_boot != hello.boot)
            self._counted_boot = hello.boot
            self._acknowledged = report.version
            self._on_report()

    async def _tell(self, writer: asyncio.StreamWriter, hello: RouterHello) -> None:
        sent: int | None = None
        certify_at_s = -math.inf
        while True:
            self._changed.clear()
            if self._clock.monotonic() >= certify_at_s:
                writer.write(await self._certified(hello))
                certify_at_s = self._clock.monotonic() + ROUTER_LIFE_S / 3
            if self._is_settled() and sent != self._book.version:
                writer.write(self._book.line_since(sent, term=self._term, control_url=self._control_url))
                sent = self._book.version
            else:
                beat = RouteUpdate(term=self._term, version=sent or 0, outstanding=self._outstanding)
                writer.write(self._line(beat))
                self._outstanding = {}
            async with asyncio.timeout(SILENCE_LIMIT_S):
                await writer.drain()
            try:
                async with asyncio.timeout(self._timings.router_beat_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _certified(self, hello: RouterHello) -> bytes:
        certificate = await self._keys.issue_to_router(self.address.name, hello.signing_request)
        return self._line(RouteUpdate(term=self._term, version=0, certificate=certificate))

    def _line(self, update: RouteUpdate) -> bytes:
        return update.model_dump_json(exclude_defaults=True).encode() + b"\n"


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next one. Raises Unavailable at the end, TimeoutError, ValueError for one that is too long."""
    async with asyncio.timeout(SILENCE_LIMIT_S):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise Unavailable("It hung up.", remedy="See logs/router.log on the node.")
    return line


def _parse_hello(line: bytes) -> RouterHello:
    """Raises what the node's gateway says instead, ValueError for nonsense."""
    told = json.loads(line)
    if isinstance(told, dict) and "code" in told:
        raise GlowplugError.from_dict(told)
    return RouterHello.model_validate(told)
