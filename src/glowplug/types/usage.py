"""What replicas did with their time, in spans of a few minutes: what costs are made of."""

from __future__ import annotations

from enum import StrEnum

from glowplug.types.replica import Message

SPAN_S = 300.0
"""Spans are multiples of it since 1970."""


class Use(StrEnum):
    """What a replica does with what it occupies."""

    SERVING = "serving"
    """At least one request is in flight."""
    STARTING = "starting"
    IDLE = "idle"
    """Ready, and no request in flight."""
    PARKED = "parked"
    """Frozen: it occupies memory, and no GPU."""


class UsageSpan(Message):
    """Replica-seconds of one server within :data:`SPAN_S` from ``starts_at`` (Unix time) on.

    ``gpu``: the chip that its replicas need, empty for none; ``gpus``: how many each.
    """

    app: str
    server: str
    gpu: str = ""
    gpus: int = 0
    starts_at: float
    serving_s: float = 0.0
    starting_s: float = 0.0
    idle_s: float = 0.0
    parked_s: float = 0.0
