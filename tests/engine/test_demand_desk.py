"""What is wanted of an engine in a process of its own: two files, whose either side may die at any point."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from glowplug.engine import engine_beside
from glowplug.engine.control_api import ControlApi
from glowplug.engine.demand_desk import AGAIN_S, DemandDesk, read_answer
from glowplug.engine.engine_beside import RELEASE_TIMEOUT_S, EngineBeside
from glowplug.engine.port import Demand
from glowplug.engine.status import write_status
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from glowplug.types.paths import StateDir

from .recording_engine import RecordingEngine

TWO = [Demand(2, cpus=4.0, memory_bytes=1 << 30)]


class Both:
    """An engine with its desk, and who asks it from another process."""

    def __init__(self, state: StateDir) -> None:
        state.create()
        self.state = state
        self.engine = RecordingEngine()
        self.clock = ManualClock()
        self.restart()
        self.beside = EngineBeside("recording", state, ControlApi("http://127.0.0.1:1"), SystemClock())
        self.tell()

    def restart(self) -> None:
        self.desk = DemandDesk(self.state, self.engine, self.clock, self.tell)

    def tell(self) -> None:
        now = SystemClock().wall()
        write_status(self.state, "recording", "", now, machines=self.engine.machines())

    @contextmanager
    def looking(self) -> Iterator[None]:
        """The engine's process, which looks again and again."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.01):
                with suppress(GlowplugError):
                    self.desk.look()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(60)


@pytest.fixture
def both(state: StateDir) -> Both:
    return Both(state)


def test_what_is_wanted_is_asked_for_once_and_again_after_a_while(both: Both) -> None:
    both.desk.look()
    assert both.engine.asked == []
    with both.looking():
        both.beside.ask(TWO)
        both.beside.ask(TWO)
    assert both.engine.asked == [TWO]
    both.clock.advance(AGAIN_S)
    both.desk.look()
    assert both.engine.asked == [TWO, TWO], "Ray's head may have been started anew"
    both.restart()
    both.desk.look()
    assert both.engine.asked == [TWO] * 3


def test_what_the_engine_can_never_have_is_the_answer_and_no_failure(both: Both) -> None:
    both.engine.most = 1
    with both.looking(), pytest.raises(ResourceExhausted, match="Nobody has so many") as refused:
        both.beside.ask(TWO)
    assert refused.value.remedy == "Join another machine."


def test_an_engine_that_is_away_is_asked_until_it_is_back(both: Both) -> None:
    both.engine.is_away = True
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine_beside, "ANSWER_TIMEOUT_S", 0.05)
        with pytest.raises(DeadlineExceeded, match="has not done within"):
            both.beside.ask(TWO)
    for _ in range(2):
        with pytest.raises(Unavailable):
            both.desk.look()
    both.engine.is_away = False
    both.desk.look()
    assert both.engine.asked == [TWO]


def test_a_machine_is_let_go_of_once_even_if_the_engine_is_started_again(both: Both) -> None:
    both.engine.give("beta")
    both.tell()
    with both.looking():
        both.beside.ask(TWO)
        both.beside.release("id-beta")
    assert both.engine.released == ["id-beta"]
    assert both.engine.wanted == TWO
    both.engine.give("beta")
    both.restart()
    both.desk.look()
    assert both.engine.released == ["id-beta"], "it may have been taken again since"


def test_a_machine_that_was_let_go_of_is_not_told_as_one_that_runs_once_the_release_is_over(
    both: Both,
) -> None:
    both.engine.give("beta", "gamma")
    both.tell()
    with both.looking():
        both.beside.release("id-beta")
    assert [one.node for one in both.beside.machines()] == ["gamma"]


def test_a_machine_that_has_to_stay_is_the_answer_and_the_rest_is_asked_for(both: Both) -> None:
    both.engine.own = "own"
    both.engine.give("own")
    both.tell()
    with both.looking():
        both.beside.ask(TWO)
        with pytest.raises(Conflict, match="It stays"):
            both.beside.release("id-own")
    assert both.engine.asked == [TWO, TWO]
    both.desk.look()
    assert both.engine.asked == [TWO, TWO], "to ask again at once helps nobody"
    both.clock.advance(AGAIN_S)
    both.desk.look()
    assert both.engine.asked == [TWO, TWO, TWO]
    answer = read_answer(both.state)
    assert answer is not None
    assert (answer.error or {}).get("code") == "conflict", "it is no other answer by being asked again"


def test_a_machine_that_nobody_knows_is_said_to_be_unknown(both: Both) -> None:
    for call in (both.beside.release, both.beside.drain):
        with pytest.raises(NotFound):
            call("nobody")
    assert not both.state.engine_demand.exists()


def test_an_engine_that_says_nothing_is_said_to(both: Both) -> None:
    both.engine.give("beta")
    both.tell()
    assert [one.node for one in both.beside.machines()] == ["beta"]
    write_status(both.state, "recording", "", SystemClock().wall() - 3600.0, machines=[])
    with pytest.raises(Unavailable, match="has said nothing lately"):
        both.beside.machines()
    away = Unavailable("Ray: its head does not answer.", remedy="Is it up?")
    write_status(both.state, "recording", "", SystemClock().wall(), error=away)
    with pytest.raises(Unavailable, match="its head does not answer"):
        both.beside.reconcile()
    broken = GlowplugError("The control plane failed.", remedy="Look at its log.")
    write_status(both.state, "recording", "", SystemClock().wall(), error=broken)
    with pytest.raises(Unavailable, match=r"could not look: The control plane failed\.") as told:
        both.beside.machines()
    assert told.value.remedy == "Look at its log."


def test_an_engine_that_is_busy_with_a_release_is_not_taken_for_silent(both: Both) -> None:
    write_status(both.state, "recording", "", SystemClock().wall() - RELEASE_TIMEOUT_S, machines=[])
    assert both.beside.machines() == []


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"version": 2, "id": "a"})])
def test_a_demand_that_cannot_be_read_is_told_and_replaced_by_the_next(both: Both, content: str) -> None:
    both.state.engine_demand.write_text(content)
    with pytest.raises(Unavailable, match="cannot be read"):
        both.desk.look()
    assert both.engine.asked == []
    with both.looking():
        both.beside.ask(TWO)
    assert both.engine.asked == [TWO]
