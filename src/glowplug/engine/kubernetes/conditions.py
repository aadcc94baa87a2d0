"""Conditions: what is said of an object, since when, and of which of its generations."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from glowplug.engine.kubernetes.objects import Condition
from glowplug.observe.waterfall import printable
from glowplug.types.errors import GlowplugError

READY = "Ready"
PROGRESSING = "Progressing"
DEPLOYED = "Deployed"
_MESSAGE_CHARACTERS = 1024


@dataclass(frozen=True)
class Statement:
    """One condition's content."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""

    @classmethod
    def of_error(cls, error: GlowplugError) -> Statement:
        """It is not so, for this reason; the remedy is part of the message."""
        reason = "".join(word.capitalize() for word in error.code.split("_"))
        return cls("False", reason, str(error))


def timestamp(wall_s: float) -> str:
    """Unix seconds as Kubernetes writes times."""
    return datetime.datetime.fromtimestamp(int(wall_s), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """The other way round. Raises ValueError."""
    return datetime.datetime.fromisoformat(text).timestamp()


def conditions(
    before: Sequence[Condition], now: Mapping[str, Statement], *, generation: int, wall_s: float
) -> list[Condition]:
    """All conditions, those of ``now`` renewed; the time of a change is kept where the status is the same."""
    known = {one.type: one for one in before}
    for kind, statement in now.items():
        old = known.get(kind)
        is_same = old is not None and old.status == statement.status
        known[kind] = Condition(
            type=kind,
            status=statement.status,
            reason=statement.reason,
            message=printable(statement.message)[:_MESSAGE_CHARACTERS],
            last_transition_time=old.last_transition_time if old and is_same else timestamp(wall_s),
            observed_generation=generation,
        )
    return list(known.values())


def found(kind: str, among: Sequence[Condition]) -> Condition | None:
    """The condition of this type."""
    return next((one for one in among if one.type == kind), None)
