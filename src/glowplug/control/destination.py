"""What a router needs to know of a server: where its requests go, and what is counted about them.

The control plane's :class:`~glowplug.control.target.Target` also starts and stops replicas; a router on a
node follows a table (:mod:`glowplug.control.edge`). Requests pass both in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from glowplug.control.replica_entry import Replica


@dataclass
class Counters:
    """What happened to requests. Plain integers: the hot path adds to them, ``/metrics`` reads them."""

    by_status_class: list[int] = field(default_factory=lambda: [0] * 6)
    held: int = 0
    retried: int = 0
    rejected: int = 0
    heat_steps: Counter[str] = field(default_factory=Counter)
    """Steps on the heat ladder (``parked``, ``pushed_out``, ``woken``, ``not_woken``, ``cooled``), and how
    often one was taken to give a GPU to somebody else (``made_way``)."""


class Destination(Protocol):
    """One server of one app. Everything happens in one event loop; only :meth:`wait` waits."""

    @property
    def name(self) -> str:
        """``app/server``, for messages."""
        ...

    @property
    def counters(self) -> Counters:
        """What happened so far."""
        ...

    @property
    def request_timeout_s(self) -> float:
        """How long either side of a request may stand still."""
        ...

    def pick(self) -> Replica | None:
        """The replica that should have the next request, or None. Who is given one puts the request among
        those in flight before anything else happens.
        """
        ...

    async def wait(
        self, wait_for_disconnect: Callable[[], Awaitable[bool]], *, arrived_at_s: float, is_admitted: bool
    ) -> Replica:
        """A replica for a request that none could take. ``is_admitted``: it has waited before.

        Raises ClientGone as soon as the caller hangs up, or a GlowplugError when waiting is over.
        """
        ...

    def suspect(self, replica: Replica, seconds: float) -> None:
        """The replica took no connection or broke one: avoid it for a while."""
        ...

    def entered(self) -> None:
        """A request is in flight."""
        ...

    def left(self) -> None:
        """A request is over."""
        ...

    def first_answer(self, replica: Replica) -> None:
        """The first byte of an answer of a replica whose cold-start record is open."""
        ...


class Destinations(Protocol):
    """All servers, by name."""

    def target(self, app: str, server: str) -> Destination:
        """The named one. Raises NotFound."""
        ...
