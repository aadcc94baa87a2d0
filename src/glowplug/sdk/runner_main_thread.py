"""Work for the main thread.

The user's life-cycle methods (``enter``, ``before_snapshot``, ``exit``) all run on the process's main thread,
one at a time: frameworks may insist on it (signal handlers, CUDA contexts), and it makes their order plain.
Requests arrive on other threads and hand such work over here.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from glowplug.types.errors import DeadlineExceeded

T = TypeVar("T")

_LOOK_EVERY_S = 1.0


class MainThread:
    """A queue of work that the main thread does until it is told to stop."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # SimpleQueue: its put() may be called from a signal handler.
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()

    def run(self, work: Callable[[], T], stage: str) -> T:
        """Have ``work`` done by the main thread and return its result. Raises what it raises."""
        future: Future[T] = Future()
        self._work.put((work, future))
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            if future.done():
                raise  # the user's own TimeoutError
            future.cancel()
            raise DeadlineExceeded(
                f"{stage} did not end within {self._timeout_s:g} s.",
                remedy="See the replica's log; do less in it.",
                stage=stage,
            ) from None

    def serve(self) -> None:
        """Do what arrives, until :meth:`stop`. Called by the main thread."""
        while (item := self._next()) is not None:
            work, future = item
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked has given up
            try:
                future.set_result(work())
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it belongs to whoever asked
                future.set_exception(error)

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        # A signal just before a wait begins does not end it: its handler runs when the wait is over.
        while True:
            try:
                return self._work.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                continue

    def stop(self) -> None:
        """Let :meth:`serve` return after the work already handed over. May be called in a signal handler."""
        self._work.put(None)
