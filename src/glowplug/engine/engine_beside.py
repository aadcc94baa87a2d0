"""The engine that runs beside the control plane, for another process on the same state directory.

It is asked through files (``demand_desk.py``), and what it says of its machines is what it wrote down when it
looked last. So there is one process that talks to the cluster, whoever plans.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress

from glowplug.engine.control_api import ControlApi
from glowplug.engine.demand_desk import DemandAnswer, DemandRecord, read_answer, read_demand, write_demand
from glowplug.engine.port import Demand, Machine
from glowplug.engine.status import read_status
from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, NotFound, Unavailable
from glowplug.types.paths import StateDir

ANSWER_TIMEOUT_S = 45.0
RELEASE_TIMEOUT_S = 130.0
"""A release gives replicas their time to end."""
SILENCE_S = RELEASE_TIMEOUT_S + 30.0
"""The engine looks every two seconds, but not while it releases; a look at machines that do not answer takes
some more.
"""
_POLL_S = 0.1


class EngineBeside:
    """See :class:`~glowplug.engine.port.Engine`; ``name`` is that of the engine that is meant."""

    def __init__(self, name: str, state: StateDir, control: ControlApi, clock: Clock) -> None:
        self._name = name
        self._state = state
        self._control = control
        self._clock = clock

    @property
    def name(self) -> str:
        """``ray`` or ``kubernetes``."""
        return self._name

    def machines(self) -> list[Machine]:
        """As they were when the engine looked last."""
        told = read_status(self._state)
        if told is None or told.engine != self._name or self._clock.wall() - told.at > SILENCE_S:
            raise Unavailable(
                f"The engine {self._name} has said nothing lately.",
                remedy=f"Its log is {self._state.logs / 'engine.log'}; is `glowplug cluster up` running?",
            )
        if told.error is not None:
            error = GlowplugError.from_dict(told.error)
            if isinstance(error, Unavailable):
                raise error
            raise Unavailable(
                f"The engine {self._name} could not look: {error.message}", remedy=error.remedy
            ) from error
        return told.machines

    def reconcile(self) -> list[Machine]:
        """The engine itself does, every two seconds."""
        return self.machines()

    def ask(self, demands: Sequence[Demand]) -> None:
        """Have the engine ask; returns when it has. It asks again by itself while that stays the same."""
        before, answer = self._said(), read_answer(self._state)
        if before and before.demands == list(demands) and answer == DemandAnswer(id=before.id):
            return
        self._hand_over(DemandRecord(id=secrets.token_hex(8), demands=list(demands)), ANSWER_TIMEOUT_S)

    def drain(self, machine_id: str) -> None:
        """The control plane moves what runs there."""
        self._control.drain(self._machine(machine_id).node)

    def release(self, machine_id: str) -> None:
        """Have the engine let it go; what is wanted stays wanted."""
        self._machine(machine_id)
        before = self._said()
        record = DemandRecord(
            id=secrets.token_hex(8), demands=before.demands if before else [], released=[machine_id]
        )
        self._hand_over(record, RELEASE_TIMEOUT_S)

    def _said(self) -> DemandRecord | None:
        """What was wanted last. What cannot be read is replaced."""
        with suppress(Unavailable):
            return read_demand(self._state)
        return None

    def _machine(self, machine_id: str) -> Machine:
        for machine in self.machines():
            if machine.id == machine_id:
                return machine
        raise NotFound(
            f"The engine knows no machine {machine_id!r}.", remedy="`glowplug cluster status` lists them."
        )

    def _hand_over(self, record: DemandRecord, timeout_s: float) -> None:
        write_demand(self._state, record)
        deadline_s = self._clock.monotonic() + timeout_s
        while True:
            answer = read_answer(self._state)
            if answer is not None and answer.id == record.id:
                if answer.error is not None:
                    raise GlowplugError.from_dict(answer.error)
                return
            if self._clock.monotonic() >= deadline_s:
                raise DeadlineExceeded(
                    f"The engine {self._name} has not done within {timeout_s:g} s what it was asked for.",
                    remedy=f"It does so as soon as it can; see {self._state.logs / 'engine.log'}.",
                    stage="demand",
                )
            time.sleep(_POLL_S)
