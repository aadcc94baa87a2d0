"""One thread with an event loop, so that plain threads can wait for coroutines with a deadline that holds.

A coroutine that is too late is cancelled, and with it the request that it had open.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import TypeVar

from glowplug.types.errors import Unavailable

Result = TypeVar("Result")


class LoopThread:
    """Starts on first use; :meth:`close` ends it. A daemon thread: it never keeps a process alive."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def run(self, work: Coroutine[None, None, Result], timeout_s: float) -> Result:
        """What ``work`` returns or raises. Raises TimeoutError when late, Unavailable when closed."""
        try:
            loop = self._running_loop()
        except BaseException:
            work.close()
            raise
        try:
            return asyncio.run_coroutine_threadsafe(_within(work, timeout_s), loop).result()
        except CancelledError as cancelled:
            raise self._closed() from cancelled

    def _closed(self) -> Unavailable:
        return Unavailable(f"{self._name} was closed.", remedy="Ask again through a new one.")

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._is_closed:
                raise self._closed()
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True).start()
            return self._loop

    def close(self) -> None:
        """No new work; what is under way is dropped. May be called twice."""
        with self._lock:
            self._is_closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)


async def _within(work: Coroutine[None, None, Result], timeout_s: float) -> Result:
    async with asyncio.timeout(timeout_s):
        return await work


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
