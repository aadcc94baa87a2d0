"""The control plane as the planner needs it: who places work on machines, and makes nodes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """What machines do, by node: as the planner named it, or the machine's address.

    ``worth``: how much would be lost if it went, in any unit; ``heard``: those whose own agent answers;
    ``drained``: those that are given no new work; ``listed``: all of them, None where nobody knows.
    """

    worth: Mapping[str, float] = field(default_factory=dict)
    heard: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()
    listed: frozenset[str] | None = None


@dataclass(frozen=True)
class NodeToken:
    """To join with, once. ``id`` names it, ``text`` is the secret."""

    id: str
    text: str


class Workforce(Protocol):
    """Who places the work. Calls block and hold their own deadlines; they come from several threads at once,
    and each may be made again. Raises GlowplugError.
    """

    def look(self) -> Work:
        """What every machine does now."""
        ...

    def token(self, ttl_s: float) -> NodeToken:
        """A new one, good for so long."""
        ...

    def revoke(self, token: NodeToken) -> None:
        """Nobody can join with it any more."""
        ...

    def drain(self, node: str, *, undo: bool) -> None:
        """Place nothing new there and move what runs there, or use it again."""
        ...

    def remove(self, node: str) -> None:
        """Take it out, and give up what still runs there. Quiet for one that is not there."""
        ...
