"""One HTTP request on its way through the router: pick or wait, forward, relay, and try again where allowed.

Bytes pass as they come, in both directions, with back-pressure. Nothing here logs, parses or copies more than
it must: this is the hot path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from glowplug.control import headers
from glowplug.control.answers import Receive, Scope, Send
from glowplug.control.channel import ConnectFailed, ExchangeBroken, ReplicaChannel
from glowplug.control.destination import Destination
from glowplug.control.replica_entry import Replica
from glowplug.control.request_body import SMALL_BODY_BYTES, ClientGone, KeptBytes, RequestBody
from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, ReplicaFailed

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_MAX_REPEATS = 3
# Most requests are over sooner, and watching for a caller's hanging up costs a task.
_WATCH_AFTER_S = 0.05


class ProxiedRequest:
    """One request. :meth:`run` answers the caller or raises; ``has_started``: bytes of an answer went out."""

    __slots__ = (
        "_arrived_at_s", "_body", "_clock", "_guard", "_is_held", "_loop", "_on_overhead", "_path", "_prefix",
        "_reason", "_repeats", "_scope", "_send", "_sending_since_s", "_target", "_task", "_timings",
        "_watch", "has_started", "status",
    )  # fmt: skip

    def __init__(
        self,
        target: Destination,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        path: str,
        prefix: str,
        timings: Timings,
        clock: Clock,
        kept: KeptBytes,
        on_overhead: Callable[[float], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._arrived_at_s = clock.monotonic()
        self._target = target
        self._scope = scope
        self._send = send
        self._body = RequestBody(receive, scope["headers"], clock, kept)
        self._path = path
        self._prefix = prefix
        self._timings = timings
        self._on_overhead = on_overhead
        self._is_held = False
        self._repeats = 0
        self._task: asyncio.Task[None] | None = None
        self._reason: Exception | None = None
        self._watch: asyncio.Task[None] | None = None
        self._guard: asyncio.TimerHandle | None = None
        self._sending_since_s: float | None = None
        self.has_started = False
        self.status = 0

    async def run(self) -> None:
        """Answer the request. Raises ClientGone or a GlowplugError."""
        self._task = asyncio.current_task()
        try:
            await self._run()
        finally:
            self._body.close()

    async def _run(self) -> None:
        while True:
            replica = self._target.pick() or await self._hold()
            replica.in_flight.add(self)
            self._target.entered()
            try:
                await self._attempt(replica)
                return
            except ConnectFailed as error:
                self._target.suspect(replica, self._timings.suspect_refused_s)
                if not self._body.is_kept:
                    raise self._given_up(error) from error
            except ExchangeBroken as error:
                self._target.suspect(replica, self._timings.suspect_broken_s)
                self._repeats += 1
                if self.has_started or not self._may_repeat():
                    raise self._given_up(error) from error
            finally:
                replica.in_flight.discard(self)
                self._target.left()
            self._target.counters.retried += 1

    def interrupt(self, reason: Exception) -> None:
        """End the attempt under way as if the replica had raised ``reason``."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    async def _hold(self) -> Replica:
        is_admitted, self._is_held = self._is_held, True
        return await self._target.wait(
            self._body.wait_for_disconnect, arrived_at_s=self._arrived_at_s, is_admitted=is_admitted
        )

    async def _attempt(self, replica: Replica) -> None:
        channel = replica.channel
        if channel is None:
            raise ConnectFailed(f"Replica {replica.id} has just ended.", replica_id=replica.id)
        self._guard = self._loop.call_later(_WATCH_AFTER_S, self._start_watching)
        try:
            await self._exchange(replica, channel)
        except asyncio.CancelledError:
            if self._reason is None or self._task is None:
                raise
            reason, self._reason = self._reason, None
            self._task.uncancel()
            raise reason from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise channel.translate(error) from error
        finally:
            self._guard.cancel()
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

    async def _exchange(self, replica: Replica, channel: ReplicaChannel) -> None:
        body = self._body
        scope = self._scope
        peer = scope["client"][0] if scope["client"] else "unknown"
        prefix, path = replica.addressed(self._prefix, self._path)
        outgoing = headers.request_headers(scope["headers"], peer=peer, scheme=scope["scheme"], prefix=prefix)
        content = None
        if body.is_present:
            content = await body.read_all() if body.is_small else body.stream()
        asked_at = self._clock.monotonic()
        try:
            response = await channel.request(scope["method"], path, outgoing, content)
        except ExchangeBroken as error:
            if body.is_caller_gone:
                raise ClientGone from error
            raise
        answered_at = self._clock.monotonic()
        if replica.cold_start is not None:
            self._target.first_answer(replica)
        try:
            await self._relay(response)
        except BaseException:
            response.close()
            raise
        if body.is_complete:
            response.release()
        else:
            # The answer came before the whole request: what is left of it must not be the next one's head.
            response.close()
        if not self._is_held:
            self._on_overhead(asked_at - self._arrived_at_s + self._clock.monotonic() - answered_at)

    async def _relay(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        self._check_answer(response)
        # As long as nothing has gone out, the replica may die without the caller noticing.
        whole = await response.content.read() if self._is_kept_back(response) else None
        self._sending_since_s = self._clock.monotonic()
        send = self._send
        self.has_started = True
        self.status = status
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers.response_headers(response.raw_headers, status=status),
            }
        )
        if whole is not None:
            await send({"type": "http.response.body", "body": whole})
            return
        content = response.content
        while True:
            self._sending_since_s = None
            chunk = await content.readany()
            is_last = content.at_eof()
            self._sending_since_s = self._clock.monotonic()
            await send({"type": "http.response.body", "body": chunk, "more_body": not is_last})
            if is_last:
                return

    def _check_answer(self, response: aiohttp.ClientResponse) -> None:
        if not 200 <= response.status <= 599:
            raise ReplicaFailed(
                f"The server answered with status {response.status}, which is not HTTP.",
                remedy="Answer with a status between 200 and 599.",
            )
        is_framed = "content-length" in response.headers or response.status in (204, 304)
        if self._scope["http_version"] == "1.0" and not is_framed and self._scope["method"] != "HEAD":
            raise InvalidInput(
                "The answer has no known length, which HTTP/1.0 cannot express.", remedy="Use HTTP/1.1."
            )

    def _is_kept_back(self, response: aiohttp.ClientResponse) -> bool:
        """Short, of known length, and to be had again: it is read to its end before its head is passed on."""
        length = response.content_length
        return length is not None and length <= SMALL_BODY_BYTES and self._may_repeat()

    def _may_repeat(self) -> bool:
        is_repeatable = (
            self._scope["method"] in _IDEMPOTENT
            or headers.first(self._scope["headers"], b"idempotency-key") is not None
        )
        return is_repeatable and self._body.is_kept and self._repeats <= _MAX_REPEATS

    def _given_up(self, error: GlowplugError) -> GlowplugError:
        return ReplicaFailed(
            error.message,
            remedy=error.remedy
            or "The request was not repeated: it may have had effects. Send an Idempotency-Key header with "
            "requests that may be repeated, or see the replica's log.",
            **error.details,
        )

    # -- watching ----------------------------------------------------------------------------------

    def _start_watching(self) -> None:
        """The answer takes its time: look out for a caller who hangs up, and for one who reads nothing."""
        if not self._body.is_complete:
            # Whoever reads the body notices a caller's going; nobody notices that nothing moves any more.
            if self._clock.monotonic() - self._body.moved_at_s >= self._silence_limit_s:
                self.interrupt(self._stalled("The request's body stood still"))
            else:
                self._guard = self._loop.call_later(_WATCH_AFTER_S, self._start_watching)
            return
        self._watch = self._loop.create_task(self._watch_caller())
        self._check_stall()

    async def _watch_caller(self) -> None:
        if await self._body.wait_for_disconnect():
            self.interrupt(ClientGone())

    def _check_stall(self) -> None:
        since_s = self._sending_since_s
        if since_s is not None and self._clock.monotonic() - since_s >= self._silence_limit_s:
            self.interrupt(self._stalled("The caller read nothing of the answer"))
        else:
            self._guard = self._loop.call_later(self._silence_limit_s, self._check_stall)

    @property
    def _silence_limit_s(self) -> float:
        return self._target.request_timeout_s

    def _stalled(self, what: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{what} for {self._silence_limit_s:g} s.",
            remedy="Send and read without such pauses, or raise request_timeout_s.",
            stage="transfer",
        )
