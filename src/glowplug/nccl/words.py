"""The words of the protocol between ranks: steps, states, deadlines, and what crosses the connection.

A message is one line of JSON with ``"version": 1``; ``docs/nccl.md`` is the contract. Standard library only.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from glowplug.types.errors import GlowplugError, InvalidInput

VERSION = 1
MAX_LINE_BYTES = 1 << 20
"""A census of thousands of groups fits; nothing of ours is longer."""


class State(StrEnum):
    """What a rank's communicators are. FAILED is final: its collectives raise."""

    RUNNING = "running"
    HELD = "held"
    RELEASED = "released"
    REBUILT = "rebuilt"
    FAILED = "failed"


class Step(StrEnum):
    """What the coordinator asks of every rank."""

    HOLD = "hold"
    RELEASE = "release"
    REBUILD = "rebuild"
    VERIFY = "verify"
    OPEN = "open"
    FAIL = "fail"
    END = "end"


ALLOWED_IN: dict[Step, frozenset[State]] = {
    Step.HOLD: frozenset({State.RUNNING}),
    Step.RELEASE: frozenset({State.HELD}),
    Step.REBUILD: frozenset({State.HELD, State.RELEASED}),
    Step.VERIFY: frozenset({State.REBUILT}),
    Step.OPEN: frozenset({State.HELD, State.REBUILT}),
    Step.FAIL: frozenset(State),
    Step.END: frozenset(State),
}
"""A rank that was held but never came to release is rebuilt with the others when they must go back."""


@dataclass(frozen=True)
class Deadlines:
    """How long each step may take, in seconds. The first five together fit into the 60 s that a hook has.

    ``hold_s`` is how long it is tried to stop the ranks, ``drain_s`` how long a try waits for what is in
    flight, ``gap_s`` how long the coordinator may be silent between two steps: longer than any step.
    ``unresumed_s`` is how long communicators may stay released when neither a capture nor a resume comes. It
    is counted by a process that runs, so that the time which a snapshot lies on a disk is none of it.
    """

    hold_s: float = 10.0
    release_s: float = 10.0
    rebuild_s: float = 20.0
    verify_s: float = 10.0
    open_s: float = 3.0
    drain_s: float = 0.5
    gap_s: float = 30.0
    unresumed_s: float = 900.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidInput(
                    f"{each.name} cannot be {value!r}.", remedy="Give seconds: a number greater than 0."
                )

    def of(self, step: Step) -> float:
        """That of one step, in seconds."""
        by_step = {
            Step.HOLD: self.drain_s,  # of one try; `hold_s` is how long it is tried
            Step.RELEASE: self.release_s,
            Step.REBUILD: self.rebuild_s,
            Step.VERIFY: self.verify_s,
        }
        return by_step.get(step, self.open_s)


@dataclass(frozen=True)
class Request:
    """One step for one rank. ``port`` and ``generation`` are for REBUILD, ``error`` is for FAIL."""

    token: str
    step: Step
    deadline_s: float
    port: int = 0
    generation: int = 0
    error: dict[str, Any] | None = None

    def to_message(self) -> dict[str, Any]:
        """JSON-ready form."""
        message: dict[str, Any] = {
            "version": VERSION,
            "token": self.token,
            "step": self.step.value,
            "deadline_s": self.deadline_s,
        }
        if self.step is Step.REBUILD:
            message |= {"port": self.port, "generation": self.generation}
        if self.error is not None:
            message["error"] = self.error
        return message

    @staticmethod
    def from_message(message: dict[str, Any]) -> Request:
        """Raises InvalidInput for what is no request of this version."""
        try:
            step = Step(message["step"])
            deadline_s = float(message["deadline_s"])
            port, generation = int(message.get("port", 0)), int(message.get("generation", 0))
            token, error = message["token"], message.get("error")
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise _malformed(f"{type(problem).__name__}: {problem}") from problem
        if not isinstance(token, str) or not (error is None or isinstance(error, dict)):
            raise _malformed("a field has another type")
        if not 0 < deadline_s < math.inf or not 0 <= port < 1 << 16 or generation < 0:
            raise _malformed("a number is out of range")
        return Request(token, step, deadline_s, port, generation, error)


@dataclass(frozen=True)
class Reply:
    """How a step went on one rank: a result, or an error."""

    rank: int
    result: dict[str, Any] | None = None
    error: GlowplugError | None = None

    def to_message(self) -> dict[str, Any]:
        """JSON-ready form."""
        message: dict[str, Any] = {"version": VERSION, "rank": self.rank}
        if self.error is not None:
            return message | {"error": self.error.to_dict()}
        return message | {"result": self.result or {}}

    @staticmethod
    def from_message(message: dict[str, Any]) -> Reply:
        """Raises InvalidInput for what is no reply of this version."""
        rank, result, error = message.get("rank"), message.get("result"), message.get("error")
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise _malformed("it names no rank")
        if isinstance(error, dict):
            return Reply(rank, error=GlowplugError.from_dict(error))
        if not isinstance(result, dict):
            raise _malformed("it has neither a result nor an error")
        return Reply(rank, result=result)


def to_line(message: dict[str, Any]) -> bytes:
    """A message as it is sent. Details of errors that are no JSON are sent as their text."""
    return json.dumps(message, default=str).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """A message that was received. Raises InvalidInput."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise _malformed(f"no JSON: {problem}") from problem
    if not isinstance(message, dict) or message.get("version") != VERSION:
        raise _malformed(f"not a message of version {VERSION}")
    return message


def _malformed(why: str) -> InvalidInput:
    return InvalidInput(
        f"A message between ranks is malformed: {why}.",
        remedy="All ranks must run the same version of Glowplug, and nobody else may talk to their ports.",
    )
