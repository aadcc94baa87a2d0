"""Demand from the router's own counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from glowplug.pool.planner.inputs import FileInputs
from glowplug.pool.planner.live import RECORD_NAME, LiveDemand, RequestCounts, requests_now
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Unavailable

from .world import START_S, file_of

LIVE = {"gpu": "L4", "live": {"apps": ["chat", "code/small"], "requests_per_slot": 4, "step_s": 10}}


def metrics(ended: float = 0, held: float | None = None, **requests: float) -> str:
    """Of so many in flight and, if nothing else is said, as many held."""
    registry = CollectorRegistry()
    in_flight = Gauge("glowplug_in_flight_requests", "n", ("app", "server"), registry=registry)
    waiting = Gauge("glowplug_held_requests", "n", ("app", "server"), registry=registry)
    over = Counter("glowplug_requests", "n", ("app", "server", "status_class"), registry=registry)
    for target, count in requests.items():
        in_flight.labels(*target.split("_")).set(count)
        waiting.labels(*target.split("_")).set(count if held is None else held)
        for status_class in ("2xx", "5xx"):
            over.labels(*target.split("_"), status_class).inc(ended / 2)
    return generate_latest(registry).decode()


class Router:
    """What the control plane would say next; None: it does not answer."""

    def __init__(self) -> None:
        self.says: str | None = metrics()

    def __call__(self) -> str:
        if self.says is None:
            raise Unavailable("It is away.", remedy="Start it.")
        return self.says


def live_of(folder: Path, router: Router, clock: ManualClock) -> LiveDemand:
    return LiveDemand(file_of(demand=[LIVE]), router, clock.wall, folder)


def test_requests_are_counted_by_app_and_by_server() -> None:
    counts = requests_now(metrics(ended=10, held=5, chat_big=3, chat_small=1, code_small=2))
    assert counts["chat"] == RequestCounts(in_flight=4.0, waiting=10.0, ended=20.0)
    assert counts["chat/big"] == RequestCounts(in_flight=3.0, waiting=5.0, ended=10.0)
    assert counts["code/small"].in_flight == 2.0
    with pytest.raises(Unavailable, match="no requests"):
        requests_now("# nothing\n")
    with pytest.raises(Unavailable, match="cannot be read"):
        requests_now("<html> {{{")


def test_the_most_of_each_step_counts_and_holes_are_no_quiet_hours(tmp_path: Path) -> None:
    router, clock = Router(), ManualClock(START_S)
    live = live_of(tmp_path, router, clock)
    for requests in (2, 9, 1):
        router.says = metrics(chat_big=requests, code_large=50)
        live.sample()
        clock.advance(3.0)
    clock.advance(30.0)
    router.says = None
    live.sample()
    assert "taken to be as it was" in live.problem
    assert FileInputs(file_of(demand=[LIVE]), tmp_path, live).read(clock.wall()).problems == (live.problem,)
    series = live.series(0, clock.wall())
    assert series.step_s == 10.0
    assert series.until(clock.wall()).slots.tolist() == [5.0, 5.0, 5.0]
    router.says = metrics(chat_big=0)
    live.sample()
    assert live.problem == ""
    clock.advance(10.0)
    assert live.series(0, clock.wall()).until(clock.wall()).slots.tolist() == [5.0, 5.0, 5.0, 0.0]


def test_a_line_that_waits_for_machines_is_told_as_work_and_not_as_demand(tmp_path: Path) -> None:
    router, clock = Router(), ManualClock(START_S)
    live = live_of(tmp_path, router, clock)
    for second in range(100):  # four a second, of five seconds each
        router.says = metrics(ended=4 * second, held=0, chat_big=20)
        live.sample()
        clock.advance(1.0)
    assert live.waiting_slot_s(0) == 0.0
    for second in range(100):  # of two at once; the others wait
        router.says = metrics(ended=400 + 0.4 * second, held=3.6 * second, chat_big=2)
        live.sample()
        clock.advance(1.0)
    assert live.series(0, clock.wall()).slots[-3:].max() <= 6
    assert live.waiting_slot_s(0) == pytest.approx(356 * 5 / 4, rel=0.15)
    found = FileInputs(file_of(demand=[LIVE]), tmp_path, live).read(clock.wall())
    assert found.waiting_slot_s == (live.waiting_slot_s(0),)


def test_a_restart_remembers_and_torn_lines_are_left_out(tmp_path: Path) -> None:
    router, clock = Router(), ManualClock(START_S)
    live = live_of(tmp_path, router, clock)
    for requests in range(1, 40):
        router.says = metrics(held=0, chat_big=requests)
        live.sample()
        clock.advance(5.0)
    known = live.series(0, clock.wall()).until(clock.wall()).slots
    with (tmp_path / RECORD_NAME).open("a") as record:
        record.write('{"at_s": "soon"}\n{"at_s": 3, "of": "H100 x8", "slots": 1}\n{"at_s": 17000')
    again = live_of(tmp_path, router, clock)
    remembered = again.series(0, clock.wall()).until(clock.wall()).slots
    assert np.array_equal(remembered[: len(known) - 1], known[: len(remembered)][: len(known) - 1])
    assert "soon" not in (tmp_path / RECORD_NAME).read_text()


def test_a_clock_that_is_set_back_rewrites_nothing(tmp_path: Path) -> None:
    router = Router()
    wall = [START_S]
    live = LiveDemand(file_of(demand=[LIVE]), router, lambda: wall[0], tmp_path)
    for moment, requests in ((START_S, 4), (START_S + 10, 8), (START_S - 600, 400), (START_S + 20, 4)):
        wall[0] = moment
        router.says = metrics(held=0, chat_big=requests)
        live.sample()
    assert live.series(0, START_S + 30).slots.tolist()[:3] == [1.0, 2.0, 1.0]


def test_a_line_before_the_first_replica_is_written_down_as_what_it_turned_out_to_need(
    tmp_path: Path,
) -> None:
    router, clock = Router(), ManualClock(START_S)
    live = live_of(tmp_path, router, clock)
    for second in range(200):  # four a second that nobody works on yet
        router.says = metrics(held=4 * second, chat_big=0)
        live.sample()
        clock.advance(1.0)
    assert live.series(0, clock.wall()).slots.max() > 20
    assert not (tmp_path / RECORD_NAME).exists()
    for second in range(60):  # and then, in five seconds each
        router.says = metrics(ended=4 * second, held=776, chat_big=20)
        live.sample()
        clock.advance(1.0)
    assert live.series(0, clock.wall()).slots.max() <= 7
    remembered = live_of(tmp_path, router, clock).series(0, clock.wall()).until(clock.wall()).slots
    assert len(remembered) >= 25
    assert remembered.max() <= 7
