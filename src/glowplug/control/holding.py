"""Waiting for a replica: what a request does while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from glowplug.control.replica_entry import Replica
from glowplug.control.request_body import ClientGone
from glowplug.control.ticket import Ticket
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError

if TYPE_CHECKING:
    from glowplug.control.target import Target


async def wait_for_replica(
    target: Target,
    wait_for_disconnect: Callable[[], Awaitable[bool]],
    *,
    clock: Clock,
    arrived_at_s: float,
    limit_s: float,
    is_admitted: bool,
) -> Replica:
    """Hold the request until a replica can take it.

    The limit counts from ``arrived_at_s`` on that clock. Raises ClientGone as soon as the caller hangs up,
    DeadlineExceeded naming the stage, Overloaded, or ReplicaFailed when starting is hopeless.
    """
    loop = asyncio.get_running_loop()
    ticket = target.hold(is_admitted=is_admitted)
    error: str | None = None

    def expire() -> None:
        ticket.fail(target.stuck_error(clock.monotonic() - arrived_at_s))

    expiry = loop.call_later(arrived_at_s + limit_s - clock.monotonic(), expire)
    watch = loop.create_task(_watch(ticket, wait_for_disconnect))
    try:
        while True:
            await ticket.future
            replica = target.pick()
            if replica is not None:
                return replica
            ticket.renew()
    except GlowplugError as failure:
        error = failure.message
        raise
    finally:
        expiry.cancel()
        watch.cancel()
        target.leave(ticket, error=error)


async def _watch(ticket: Ticket, wait_for_disconnect: Callable[[], Awaitable[bool]]) -> None:
    if await wait_for_disconnect():
        ticket.fail(ClientGone())
