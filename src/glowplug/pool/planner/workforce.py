"""What machines do, as whoever places work on them knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """By address of the machine. ``worth``: how much would be lost if it went, in any unit; ``heard``: those
    whose own agent answers.
    """

    worth: Mapping[str, float] = field(default_factory=dict)
    heard: frozenset[str] = frozenset()


class Workforce(Protocol):
    """Who places the work: the control plane."""

    def look(self) -> Work:
        """What every machine does now. Raises GlowplugError."""
        ...
