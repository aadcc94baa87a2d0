"""The gate in front of every collective: closed while communicators are away, and the way out when they fail.

A thread that comes to a closed gate waits there, also through a snapshot, and goes on when it is opened. When
the communicators are lost it is told so by an error instead of waiting for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glowplug.types.errors import Conflict, GlowplugError


class Gate:
    """Counts who is inside. Whoever closes it sees to it that it is opened, or failed, within a deadline."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_closed = False
        self._failure: dict[str, Any] | None = None
        self._exempt = threading.local()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Wait until it is open, and be inside. Raises what :meth:`fail` was given."""
        if getattr(self._exempt, "is_set", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed or self._failure is not None)
            if self._failure is not None:
                raise GlowplugError.from_dict(self._failure)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def exempted(self) -> Iterator[None]:
        """This thread passes, open or closed: for what ranks do in step while nobody else does anything."""
        self._exempt.is_set = True
        try:
            yield
        finally:
            self._exempt.is_set = False

    def close(self, deadline_s: float) -> None:
        """Let nobody in, and wait until nobody is inside. Raises Conflict, open again, at the deadline."""
        with self._changed:
            self._is_closed = True
            if self._changed.wait_for(lambda: self._inside == 0, deadline_s):
                return
            self._is_closed = False
            self._changed.notify_all()
        raise Conflict(
            "A thread is inside a call of torch.distributed that does not end.",
            remedy="Let ranks wait for work outside of collectives: its peers have not begun this one.",
            is_busy=True,
        )

    def open(self) -> None:
        """Let everybody in. May be called twice."""
        with self._changed:
            self._is_closed = False
            self._changed.notify_all()

    def fail(self, error: GlowplugError) -> None:
        """From now on whoever comes, or waits, gets this error. The first failure stays."""
        with self._changed:
            self._failure = self._failure or error.to_dict()
            self._changed.notify_all()
