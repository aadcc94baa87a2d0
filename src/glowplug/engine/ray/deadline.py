"""Calls that may never come back, made with a deadline.

Ray's calls wait for its head for a minute and more, and some cannot be told not to. All are made by one
thread, which Ray wants anyway; who asks waits for it as long as it likes, and no longer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from glowplug.types.errors import Unavailable

T = TypeVar("T")


class DeadlineThread:
    """Owner of a daemon thread: one that is stuck does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._busy_since_s: float | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def stuck_s(self) -> float:
        """How long the call that is under way has lasted; 0 when there is none."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def call(self, what: str, function: Callable[[], T], timeout_s: float) -> T:
        """The function's result, or its error. Raises Unavailable at the deadline, the wait for earlier
        calls included; what has begun then goes on, what has not is never made.
        """
        future: Future[T] = Future()
        self._calls.put((function, future))
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            # Since Python 3.11 it is the built-in TimeoutError, which the function may have raised itself.
            if future.done():
                raise
            future.cancel()
            raise Unavailable(
                f"{self._name} did not answer within {timeout_s:g} s: {what}.",
                remedy="Is its head up, and can it be reached from here?",
            ) from None

    def _run(self) -> None:
        while True:
            function, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            self._busy_since_s = time.monotonic()
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
                future.set_exception(error)
            finally:
                self._busy_since_s = None
