"""Pushing and collecting garbage keep out of each other's way, without a server that could lock anything.

A pusher relies on packs that it found, before anything refers to them; a collector must not remove those.
Each writes an object of its own under ``leases/`` first and looks at the others' second, so of two that start
together at least one sees the other (buckets are consistent: a list shows what was written before it). Any
number may push at once; a collector works alone. Whoever does not renew its lease for an hour is dead.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glowplug.chunks.objects import WriteObjects
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, NotFound

_log = logging.getLogger(__name__)

PREFIX = "leases/"
RENEWED_AFTER_S = 300.0
DEAD_AFTER_S = 3600.0
WAIT_S = 60.0
_PAUSE_S = 2.0
_TIMEOUT_S = 30.0
_MAX_BYTES = 4096
_PUSH, _COLLECT = "push", "collect"


class Lease:
    """A right that is held; :meth:`renew` it often."""

    def __init__(self, objects: WriteObjects, kind: str, clock: Clock) -> None:
        self.key = f"{PREFIX}{kind}-{secrets.token_hex(8)}.json"
        self._objects = objects
        self._clock = clock
        self._write()

    def _write(self) -> None:
        self._renewed_s = self._clock.wall()
        content = {
            "version": 1,
            "renewed_s": self._renewed_s,
            "holder": f"{socket.gethostname()}:{os.getpid()}",
        }
        self._objects.write(self.key, json.dumps(content).encode(), _TIMEOUT_S)

    def renew(self) -> None:
        """Costs nothing unless it is due. Raises Conflict if it has run out, whatever the reason."""
        age_s = self._clock.wall() - self._renewed_s
        if age_s > DEAD_AFTER_S / 2 or age_s < -DEAD_AFTER_S / 2:
            raise Conflict(
                "This took so long that others may have thought it dead.",
                remedy="Start it again: what was uploaded is found there.",
                lease=self.key,
            )
        if age_s > RENEWED_AFTER_S:
            self._write()

    def release(self) -> None:
        """Give it up. A failure to do so is logged: the lease runs out by itself."""
        try:
            self._objects.delete([self.key])
        except GlowplugError as problem:
            _log.warning("%s stays until it runs out: %s", self.key, problem.message)


class Leases:
    """The leases of one region."""

    def __init__(self, objects: WriteObjects, clock: Clock, pause: Callable[[float], object]) -> None:
        self._objects = objects
        self._clock = clock
        self._pause = pause

    @contextmanager
    def pushing(self) -> Iterator[Lease]:
        """Nothing that is in the region now is removed inside the block. Raises Conflict."""
        deadline_s = self._clock.monotonic() + WAIT_S
        while True:
            lease = Lease(self._objects, _PUSH, self._clock)
            try:
                if self._others(lease.key, _COLLECT):
                    if self._clock.monotonic() > deadline_s:
                        raise _busy("Garbage is being collected in the region.", lease.key)
                else:
                    yield lease
                    return
            finally:
                lease.release()
            self._pause(_PAUSE_S)

    @contextmanager
    def collecting(self) -> Iterator[Lease]:
        """Nobody pushes or collects inside the block. Raises Conflict if somebody does already."""
        lease = Lease(self._objects, _COLLECT, self._clock)
        try:
            others = self._others(lease.key, _PUSH) + self._others(lease.key, _COLLECT)
            if others:
                raise _busy(f"The region is in use: {', '.join(others[:3])}.", lease.key)
            yield lease
        finally:
            lease.release()

    def _others(self, own_key: str, kind: str) -> list[str]:
        """Who holds a living lease of this kind; dead ones are removed."""
        holders = []
        for info in self._objects.list(PREFIX):
            if info.key != own_key and info.key.startswith(f"{PREFIX}{kind}-"):
                holder = self._living_holder(info.key)
                if holder is not None:
                    holders.append(f"{kind} by {holder}")
        return holders

    def _living_holder(self, key: str) -> str | None:
        try:
            content = json.loads(self._objects.read_all(key, _MAX_BYTES, _TIMEOUT_S))
            age_s = self._clock.wall() - float(content["renewed_s"])
            holder = str(content["holder"])[:100]
        except NotFound:
            return None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, InvalidInput) as problem:
            _log.warning("lease %s cannot be read and does not count: %s", key, problem)
            return None
        if abs(age_s) <= DEAD_AFTER_S:
            return holder
        _log.warning("lease %s of %s is removed: it was not renewed for %.0f s", key, holder, age_s)
        self._objects.delete([key])
        return None


def _busy(message: str, key: str) -> Conflict:
    return Conflict(message, remedy="Try again when that is done (a dead one counts for an hour).", lease=key)
