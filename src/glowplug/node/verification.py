"""A snapshot's bytes are hashed beside its restore; whoever restores decides how long to wait for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, asynccontextmanager

from glowplug.snapshot.stored import Snapshot
from glowplug.snapshot.verification import Verifications

EXPLAINED_S = 1.0
"""After a failed restore: damage in the small files, which say most, is found within that."""


class Verification:
    """The part that one restore has in it; make it with :meth:`running`."""

    def __init__(self, verdict: Future[None]) -> None:
        self._verdict = verdict

    @classmethod
    @asynccontextmanager
    async def running(
        cls, verifications: Verifications, snapshot: Snapshot, executor: Executor, held: ExitStack
    ) -> AsyncIterator[Verification]:
        """Verify from now on; at the end of the block it is left, but not waited for.

        ``held`` has the pin: it is taken over if the verification has to be waited for with it.
        """
        verdict = verifications.join(snapshot, executor)
        try:
            yield cls(verdict)
        finally:
            verifications.leave(snapshot, verdict)
            if not verdict.done():
                pin = held.pop_all()
                verdict.add_done_callback(lambda _: pin.close())

    async def wait(self, timeout_s: float | None) -> None:
        """Until it is over, or for so long."""
        ended = asyncio.wrap_future(self._verdict)
        ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # ours is looked at
        await asyncio.wait([ended], timeout=timeout_s)

    @property
    def problem(self) -> BaseException | None:
        """SnapshotInvalid for what it found, or why it could not be done; None as long as it goes on."""
        return self._verdict.exception() if self._verdict.done() else None
