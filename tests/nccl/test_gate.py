"""The gate: nobody is inside when it is closed, and nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from glowplug.nccl.gate import Gate
from glowplug.types.errors import Conflict, ReplicaFailed

WAIT_S = 20.0


def visitor(gate: Gate, said: list[str]) -> threading.Thread:
    def come() -> None:
        try:
            with gate.passing():
                said.append("inside")
        except ReplicaFailed as error:
            said.append(error.message)

    thread = threading.Thread(target=come)
    thread.start()
    return thread


def test_whoever_comes_to_a_closed_gate_goes_on_when_it_is_opened() -> None:
    gate, said = Gate(), []
    gate.close(WAIT_S)
    thread = visitor(gate, said)
    thread.join(0.1)
    assert said == []
    gate.open()
    thread.join(WAIT_S)
    assert said == ["inside"]


def test_it_closes_when_the_last_one_has_come_out() -> None:
    gate, is_in, may_go = Gate(), threading.Event(), threading.Event()

    def stay() -> None:
        with gate.passing():
            is_in.set()
            may_go.wait(WAIT_S)

    thread = threading.Thread(target=stay)
    thread.start()
    is_in.wait(WAIT_S)
    with pytest.raises(Conflict) as caught:
        gate.close(0.05)
    assert caught.value.details["is_busy"]
    with gate.passing():  # it was opened again
        pass
    may_go.set()
    gate.close(WAIT_S)
    thread.join(WAIT_S)


def test_a_failure_reaches_those_who_wait_and_those_who_come() -> None:
    gate, said = Gate(), []
    gate.close(WAIT_S)
    waiting = visitor(gate, said)
    gate.fail(ReplicaFailed("The first."))
    gate.fail(ReplicaFailed("The second."))
    waiting.join(WAIT_S)
    visitor(gate, said).join(WAIT_S)
    assert said == ["The first.", "The first."]


def test_a_thread_that_is_exempt_passes_a_closed_gate_and_only_then() -> None:
    gate, said = Gate(), []
    gate.close(WAIT_S)
    with gate.exempted(), gate.passing():
        others = visitor(gate, said)
        others.join(0.1)
        assert said == []
    gate.open()
    others.join(WAIT_S)
    assert said == ["inside"]
