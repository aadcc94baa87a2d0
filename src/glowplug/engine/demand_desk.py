"""What is wanted of an engine that has a process of its own: handed over in two files of the state directory.

Who plans (``glowplug pool run``) writes down all that it wants (``run/engine-demand.json``); the engine's
process does it and writes down how that went (``run/engine-answer.json``). Both are replaced whole, so either
side may die at any point, and what was wanted last is done by who comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from glowplug.engine.port import Demand, Engine
from glowplug.engine.record import write_atomically
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, GlowplugError, NotFound, ResourceExhausted, Unavailable
from glowplug.types.paths import StateDir

AGAIN_S = 30.0
"""Asked for again after so long: an engine whose cluster was started anew has forgotten it."""


class DemandRecord(BaseModel):
    """``demands``: all that is wanted from now on. ``released``: ids of machines to let go of first, once.

    ``id`` is new each time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    id: str
    demands: list[Demand] = []
    released: list[str] = []


class DemandAnswer(BaseModel):
    """How the record of this ``id`` went: ``error`` as a dictionary, if it did not go well."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    id: str
    error: dict[str, Any] | None = None


def write_demand(state: StateDir, record: DemandRecord) -> None:
    """In place of what was wanted before."""
    write_atomically(state.engine_demand, record.model_dump_json())


def read_demand(state: StateDir) -> DemandRecord | None:
    """What is wanted; None where nobody has said anything. Raises Unavailable for what cannot be read."""
    try:
        return DemandRecord.model_validate_json(state.engine_demand.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise Unavailable(
            f"{state.engine_demand} cannot be read.",
            remedy="The planner replaces it with its next step; without a planner, remove it.",
            cause=str(error)[:300],
        ) from error


def read_answer(state: StateDir) -> DemandAnswer | None:
    """What was said last; None where there is nothing that can be read."""
    try:
        return DemandAnswer.model_validate_json(state.engine_answer.read_bytes())
    except (OSError, ValidationError):
        return None


class DemandDesk:
    """The engine's side. :meth:`look` often, from one thread.

    ``released`` is called when machines were let go of, before anybody is told so.
    """

    def __init__(
        self, state: StateDir, engine: Engine, clock: Clock, released: Callable[[], None] = lambda: None
    ) -> None:
        self._state = state
        self._engine = engine
        self._clock = clock
        self._released = released
        self._refusal: Conflict | None = None
        answer = read_answer(state)
        self._released_for = answer.id if answer is not None and answer.error is None else ""
        self._done = ""
        self._done_at_s = 0.0

    def look(self) -> None:
        """Do what is wanted, if that is new, did not go well, or was long ago.

        Raises what the engine does, but for what it can never have, and a machine that it has to keep: those
        are answers.
        """
        record = read_demand(self._state)
        if record is None:
            return
        is_recent = self._clock.monotonic() - self._done_at_s < AGAIN_S
        if record.id == self._done and is_recent:
            return
        try:
            self._do(record)
        except ResourceExhausted as error:
            self._answer(record, error)
        except GlowplugError as error:
            self._answer(record, error)
            raise
        else:
            self._answer(record, self._refusal)
        self._done, self._done_at_s = record.id, self._clock.monotonic()

    def _do(self, record: DemandRecord) -> None:
        # Once: the same machine may have been taken again for what was wanted in the same breath.
        if record.id != self._released_for:
            self._refusal = self._release(record.released)
            self._released_for = record.id
            if record.released:
                self._released()
        self._engine.ask(record.demands)

    def _release(self, machines: Sequence[str]) -> Conflict | None:
        """Let go of them; why one of them stays, if one does: to ask again helps nobody."""
        refusal = None
        for machine in machines:
            try:
                self._engine.release(machine)
            except NotFound:
                continue
            except Conflict as error:
                refusal = error
        return refusal

    def _answer(self, record: DemandRecord, error: GlowplugError | None) -> None:
        answer = DemandAnswer(id=record.id, error=None if error is None else error.to_dict())
        if answer != read_answer(self._state):
            write_atomically(self._state.engine_answer, answer.model_dump_json())
