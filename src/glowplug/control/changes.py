"""Waiting until something has moved, whatever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glowplug.types.errors import DeadlineExceeded


class Changes:
    """Whoever moves something tells it; all who wait look again."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Event] = set()

    def tell(self) -> None:
        """Something has moved."""
        for waiter in self._waiters:
            waiter.set()

    @contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever anything has moved, as long as the block lasts."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            yield changed
        finally:
            self._waiters.discard(changed)

    async def wait_until(self, is_met: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for a condition on what moves. Raises DeadlineExceeded naming ``what``."""
        with self.watch() as changed:
            try:
                async with asyncio.timeout(timeout_s):
                    while not is_met():
                        await changed.wait()
                        changed.clear()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"{what} took longer than {timeout_s:g} s.", remedy="See glowplug ps.", stage="stop"
                ) from None
