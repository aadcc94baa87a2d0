"""A held request's place in the queue of its server."""

from __future__ import annotations

import asyncio


class Ticket:
    """One held request's place in the queue. Its future resolves when it is worth looking again."""

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def release(self) -> None:
        """There may be a replica now."""
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Waiting is pointless."""
        if not self.future.done():
            self.future.set_exception(error)

    def renew(self) -> None:
        """Somebody else took the replica: wait on."""
        self.future = asyncio.get_running_loop().create_future()
