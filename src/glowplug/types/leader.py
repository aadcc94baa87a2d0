"""Who may give orders to node agents: the control plane of the newest term, and nobody it has succeeded.

A term is a number that grows with every change of leader. The leader sends it along with every call, and an
agent that has seen a larger one refuses (``node/leader_fence.py``).
"""

from __future__ import annotations

from typing import Protocol

from glowplug.types.errors import NotLeader

TERM_HEADER = "x-glowplug-term"
MAX_TERM = 2**53
"""Any JSON reader can hold it; at one a second it lasts."""


class Authority(Protocol):
    """In whose name agents are called. Cheap: asked before every call."""

    @property
    def term(self) -> int | None:
        """Sent with every call; None for whoever leads nothing, and calls by hand."""
        ...

    def check(self) -> None:
        """May orders be given now? Raises NotLeader or Unavailable."""
        ...

    def was_refused(self, error: NotLeader) -> None:
        """An agent has seen a newer term: find out at once."""
        ...


class ByHand:
    """Calls of nobody's term."""

    term: int | None = None

    def check(self) -> None:
        """Always."""

    def was_refused(self, error: NotLeader) -> None:
        """Nothing to find out."""
