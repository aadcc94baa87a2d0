"""The autoscaler on a clock that moves only when told to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glowplug.control.autoscaler import SHORT_WINDOW_S, Autoscaler, Decision, Load
from glowplug.types.clock import ManualClock
from glowplug.types.spec import Scaling


class Simulation:
    """A server whose replicas follow the autoscaler's wish at once."""

    def __init__(self, **scaling: float) -> None:
        self.clock = ManualClock()
        self.scaler = Autoscaler(Scaling.model_validate(scaling), self.clock)
        self.ready = 0
        self.last_activity_s: float | None = None

    def look(self, in_flight: int = 0, held: int = 0, after_s: float = 1.0) -> Decision:
        self.clock.advance(after_s)
        if in_flight or held:
            self.last_activity_s = self.clock.monotonic()
        decision = self.scaler.decide(
            Load(ready=self.ready, starting=0, in_flight=in_flight, held=held), self.last_activity_s
        )
        self.ready = decision.desired
        return decision


def test_an_unused_server_has_its_minimum() -> None:
    assert Simulation().look().desired == 0
    assert Simulation(min_replicas=2, buffer_replicas=1).look().desired == 2


def test_one_held_request_wants_one_replica_at_once() -> None:
    assert Simulation().look(held=1).desired == 1


def test_a_burst_gets_what_it_needs_at_once() -> None:
    simulation = Simulation(max_replicas=10, target_concurrency=16)
    decision = simulation.look(held=100)
    assert decision == Decision(desired=7, is_panicking=True)


def test_panic_does_not_shrink_while_the_burst_is_young() -> None:
    simulation = Simulation(max_replicas=10, target_concurrency=1, scaledown_window_s=0)
    simulation.look(held=8)
    assert simulation.look(in_flight=1).desired == 8
    assert simulation.look(in_flight=1, after_s=SHORT_WINDOW_S * 2).desired < 8


def test_a_slow_rise_is_followed_smoothly() -> None:
    simulation = Simulation(max_replicas=10, target_concurrency=10)
    for _ in range(10):
        simulation.look(in_flight=20)
    decision = simulation.look(in_flight=30)
    assert decision == Decision(desired=3, is_panicking=False)  # the mean is above 20
    simulation = Simulation(max_replicas=10, target_concurrency=10)
    simulation.look(in_flight=10)
    assert simulation.look(in_flight=11).desired == 2  # mean 10.5


def test_nothing_is_taken_away_before_the_window_is_over() -> None:
    simulation = Simulation(max_replicas=10, target_concurrency=1, scaledown_window_s=60)
    simulation.look(held=5)
    for _ in range(59):
        assert simulation.look().desired == 5
    for _ in range(5):
        last = simulation.look()
    assert last.desired == 0


def test_one_request_within_the_window_keeps_one_replica() -> None:
    simulation = Simulation(scaledown_window_s=60)
    for _ in range(10):
        assert simulation.look(in_flight=1).desired == 1
        assert simulation.look(after_s=55).desired == 1
    assert simulation.look(after_s=100).desired == 0


def test_the_buffer_comes_on_top_while_there_is_activity() -> None:
    simulation = Simulation(buffer_replicas=2, max_replicas=10, target_concurrency=1, scaledown_window_s=10)
    assert simulation.look(in_flight=3).desired == 5
    assert simulation.look(after_s=30).desired == 0


def test_the_buffer_does_not_feed_on_itself() -> None:
    simulation = Simulation(buffer_replicas=1, max_replicas=100, target_concurrency=10)
    assert {simulation.look(in_flight=5).desired for _ in range(100)} == {2}


def test_a_peak_between_two_looks_counts() -> None:
    clock = ManualClock()
    scaler = Autoscaler(Scaling(max_replicas=10, target_concurrency=1), clock)
    assert scaler.decide(Load(ready=0, starting=0, in_flight=0, held=0, peak=4), None).desired == 4


scalings = st.builds(
    lambda low, extra, buffer, window, target: Scaling(
        min_replicas=low,
        max_replicas=max(low + extra, 1),
        buffer_replicas=buffer,
        scaledown_window_s=window,
        target_concurrency=target,
    ),
    st.integers(0, 5),
    st.integers(0, 20),
    st.integers(0, 5),
    st.sampled_from([0.0, 1.0, 60.0]),
    st.integers(1, 20),
)
loads = st.builds(
    Load,
    ready=st.integers(0, 30),
    starting=st.integers(0, 10),
    in_flight=st.integers(0, 300),
    held=st.integers(0, 300),
)
histories = st.lists(st.tuples(st.floats(0.01, 30), loads), min_size=1, max_size=40)


@given(scalings, histories)
def test_the_wish_is_within_its_bounds_and_held_requests_get_a_replica(
    scaling: Scaling, history: list[tuple[float, Load]]
) -> None:
    clock = ManualClock()
    scaler = Autoscaler(scaling, clock)
    for step_s, load in history:
        clock.advance(step_s)
        desired = scaler.decide(load, None).desired
        assert scaling.min_replicas <= desired <= scaling.max_replicas
        if load.concurrency:
            assert desired >= 1


@given(scalings, histories, st.integers(0, 100), st.integers(0, 100))
def test_more_requests_never_want_fewer_replicas(
    scaling: Scaling, history: list[tuple[float, Load]], more_in_flight: int, more_held: int
) -> None:
    clock = ManualClock()
    one, other = Autoscaler(scaling, clock), Autoscaler(scaling, clock)
    for step_s, load in history[:-1]:
        clock.advance(step_s)
        one.decide(load, None)
        other.decide(load, None)
    step_s, last = history[-1]
    clock.advance(step_s)
    more = Load(last.ready, last.starting, last.in_flight + more_in_flight, last.held + more_held)
    assert one.decide(last, None).desired <= other.decide(more, None).desired


@given(scalings, histories)
def test_after_a_quiet_window_the_minimum_is_left(
    scaling: Scaling, history: list[tuple[float, Load]]
) -> None:
    clock = ManualClock()
    scaler = Autoscaler(scaling, clock)
    for step_s, load in history:
        clock.advance(step_s)
        scaler.decide(load, clock.monotonic())
    last_activity_s = clock.monotonic()
    clock.advance(max(scaling.scaledown_window_s, SHORT_WINDOW_S) * 1.1 + 0.1)
    idle = Load(ready=scaling.max_replicas, starting=0, in_flight=0, held=0)
    assert scaler.decide(idle, last_activity_s).desired == scaling.min_replicas


@given(scalings, histories)
def test_within_a_panic_the_wish_never_falls(scaling: Scaling, history: list[tuple[float, Load]]) -> None:
    clock = ManualClock()
    scaler = Autoscaler(scaling, clock)
    before = Decision(0, is_panicking=False)
    for step_s, load in history:
        clock.advance(step_s)
        active = Load(load.ready, load.starting, max(load.in_flight, 1), load.held)
        decision = scaler.decide(active, clock.monotonic())
        if before.is_panicking and decision.is_panicking:
            assert decision.desired >= before.desired
        before = decision
