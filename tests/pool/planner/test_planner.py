"""What the planner does with machines: ask, take, drain, give back; and what it does when things go wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.history import lives
from glowplug.pool.market.prices import Offer
from glowplug.pool.market.supply_log import Happened
from glowplug.pool.planner.decision import EventKind, Source
from glowplug.pool.planner.state import FleetState, Standing, shifted
from glowplug.pool.providers.simulated import Faults, Market
from glowplug.types.errors import SystemUnfit

from .world import DEMAND, POOL, START_S, STEP_S, BrokenSolver, World, file_of

PAPER = PoolId("paper", "r", "m", Purchase.ON_DEMAND)


def with_floor(floor: float, **changes: object) -> World:
    return World(file_of(demand=[{**DEMAND, "floor": floor}], **changes))


def test_what_a_floor_wants_is_asked_for_comes_and_is_checked() -> None:
    world = with_floor(3)
    first = world.step()
    assert len(first.requests) == 3
    assert {order.pool for order in first.requests} == {PAPER}
    assert first.source is Source.PLAN
    assert first.spend_usd_per_h == pytest.approx(6.0)
    world.until(lambda: world.ready == 3)
    assert len(world.told(EventKind.GRANTED)) == 3
    assert len(world.cloud.existing()) == 3
    last = world.steps(10)
    assert not last.requests
    assert len(last.ready) == 3


def test_a_request_is_made_once_however_long_it_takes() -> None:
    file = file_of(pools=[{**POOL, "lead_time_s": 900.0}], demand=[{**DEMAND, "floor": 2}])
    world = World(file, Market(lead_time_s=900.0, lead_time_spread=0.0))
    world.steps(20)
    assert len(world.told(EventKind.ASKED)) == 2


def test_capacity_is_there_before_the_schedule_that_needs_it() -> None:
    """START_S is 22:13:20 UTC; the lead time is five minutes."""
    pool = {**POOL, "lead_time_s": 300.0}
    schedule = {"slots": 4, "from": "22:30", "to": "23:30"}
    file = file_of(pools=[pool], demand=[{**DEMAND, "schedules": [schedule]}])
    world = World(file, Market(lead_time_s=300.0, lead_time_spread=0.0))
    assert not world.step().requests
    while world.clock.wall() < START_S + 1_000 - STEP_S:
        world.step()
    assert world.ready == 4


def test_the_least_valuable_machine_drains_and_only_after_every_plan_wanted_it_gone() -> None:
    world = with_floor(0)
    world.until(lambda: world.ready >= 3, 3.0)
    machines = sorted(world.planner.state.machines)
    world.worth = {name: float(1 + place) for place, name in enumerate(machines)}
    world.slots, began_s = [[0.0] * 400], world.clock.wall()
    world.until(lambda: bool(world.standing(Standing.DRAINING)), 0.0)
    first = world.told(EventKind.DRAINING)[0]
    assert first.subject == machines[0]
    assert first.at_s - began_s > 60.0
    assert world.told(EventKind.GIVEN_BACK) == []


def test_a_draining_machine_goes_when_its_work_ends_or_has_had_its_time() -> None:
    world = World(file_of({"drain_s": 120.0}))
    world.until(lambda: world.ready >= 1, 1.0)
    busy = next(iter(world.planner.state.machines))
    world.worth = dict.fromkeys(world.planner.state.machines, 1.0)
    # Forecasts of a new app remember its highest demand: say that there is none.
    world.slots = [[0.0] * 400]
    world.until(lambda: bool(world.standing(Standing.DRAINING)), 0.0)
    began_s = world.clock.wall()
    world.until(lambda: not world.planner.state.machines, 0.0)
    assert world.clock.wall() - began_s >= 120.0
    assert busy in {event.subject for event in world.told(EventKind.GIVEN_BACK)}
    assert any("did not end" in event.words for event in world.told(EventKind.GIVEN_BACK))


def test_a_draining_machine_is_kept_when_it_is_wanted_again() -> None:
    world = World(file_of({"drain_s": 3_600.0}))
    world.until(lambda: world.ready >= 2, 2.0)
    world.worth = dict.fromkeys(world.planner.state.machines, 1.0)
    world.slots = [[0.0] * 400]
    world.until(lambda: bool(world.standing(Standing.DRAINING)), 0.0)
    drained = {held.machine for held in world.standing(Standing.DRAINING)}
    world.steps(2, 6.0)
    assert {event.subject for event in world.told(EventKind.KEPT)} == drained
    assert world.standing(Standing.DRAINING) == []


def test_minimum_rental_keeps_a_machine_that_no_plan_wants() -> None:
    world = World(file_of(pools=[{**POOL, "min_rental_s": 900.0}]))
    world.until(lambda: world.ready >= 1, 1.0)
    ready_s = max(held.ready_at_s or 0.0 for held in world.planner.state.machines.values())
    world.slots = [[0.0] * 400]
    world.until(lambda: bool(world.told(EventKind.DRAINING)), 0.0)
    assert world.told(EventKind.DRAINING)[0].at_s - ready_s >= 900.0


def test_a_pool_that_left_the_file_is_drained_at_once() -> None:
    world = with_floor(1)
    world.until(lambda: world.ready == 1)
    world.file = file_of(pools=[{**POOL, "machine": "other"}])
    world.restart()
    world.step()
    assert len(world.standing(Standing.DRAINING)) == 1


# -- the spend limit -----------------------------------------------------------------------------------------


def test_requests_stop_at_the_spend_limit() -> None:
    world = with_floor(10, budget_usd_per_h=7.0)
    world.steps(20)
    assert world.ready == 3
    assert len(world.told(EventKind.ASKED)) == 3


def test_a_price_that_rises_sends_machines_back_at_once() -> None:
    pool = {name: value for name, value in POOL.items() if name != "price_usd_per_h"}
    world = World(file_of(pools=[pool], demand=[{**DEMAND, "floor": 4}], budget_usd_per_h=8.0))
    world.prices.add([Offer(PAPER, "L4", 1, 2.0, START_S - 60)])
    world.until(lambda: world.ready == 4)
    world.prices.add([Offer(PAPER, "L4", 1, 4.0, world.clock.wall() + 1)])
    decision = world.step()
    assert len(decision.terminations) == 2
    assert len(world.told(EventKind.LIMITED)) == 2
    world.steps(2)
    assert len(world.cloud.existing()) == 2


def test_quota_zero_asks_for_nothing() -> None:
    world = World(file_of(pools=[{**POOL, "quota": 0}], demand=[{**DEMAND, "floor": 5}]))
    assert not world.steps(3).requests
    assert world.events == []


def test_a_demand_of_a_thousand_times_as_much_asks_for_the_quota_and_no_more() -> None:
    world = World(file_of(budget_usd_per_h=1_000.0))
    world.steps(3, 2.0)
    world.steps(3, 2_000.0)
    state = world.planner.state
    assert len(state.machines) + len(state.orders) == 20
    assert max(world.steps(3, float("nan")).spend_usd_per_h, 0) <= 40.0
    assert world.told(EventKind.BAD_INPUT)


# -- providers -----------------------------------------------------------------------------------------------


def test_a_refusal_lowers_what_is_believed_of_the_market() -> None:
    world = World(file_of(demand=[{**DEMAND, "floor": 5}]), Market(capacity=2, lead_time_spread=0.0))
    world.step()
    second = world.step()
    assert len(world.told(EventKind.REFUSED)) == 3
    assert not second.requests
    assert not world.step().requests
    world.steps(8)
    assert len(world.told(EventKind.REFUSED)) < 3 + 8


def test_a_second_grant_goes_back_and_the_first_is_kept() -> None:
    world = World(file_of(demand=[{**DEMAND, "floor": 1}]), faults=Faults(grants_twice=1.0))
    world.until(lambda: world.ready == 1)
    world.steps(3)
    assert len(world.cloud.existing()) == 1
    assert len(world.told(EventKind.RETURNED)) == 1
    (held,) = world.planner.state.machines.values()
    assert held.machine == world.cloud.existing()[0].machine


def test_an_orphan_with_our_tag_is_swept() -> None:
    world = World(faults=Faults(strangers=1.0))
    world.step()
    world.cloud.faults = Faults()
    world.steps(3)
    assert world.cloud.existing() == []
    assert world.told(EventKind.RETURNED)[0].words.endswith("no open order explains it")


def test_a_request_that_is_never_heard_of_again_is_given_up_and_settled() -> None:
    file = file_of({"give_up_s": 300.0}, demand=[{**DEMAND, "floor": 1}])
    world = World(file, faults=Faults(never_comes=1.0))
    world.until(lambda: bool(world.told(EventKind.GIVEN_UP)))
    order = world.told(EventKind.GIVEN_UP)[0].subject
    world.cloud.faults = Faults()
    world.until(lambda: world.ready == 1)
    assert order not in world.planner.state.orders
    history = lives(world.records, world.clock.wall())
    assert history.contradictions == 0
    assert [life.is_failed for life in history.lives].count(True) >= 1


def test_a_machine_that_comes_after_it_was_given_up_goes_back() -> None:
    file = file_of({"give_up_s": 60.0}, demand=[{**DEMAND, "floor": 1}])
    world = World(file, Market(lead_time_s=200.0, lead_time_spread=0.0), Faults(cancel_ignored=1.0))
    world.until(lambda: bool(world.told(EventKind.RETURNED)))
    world.steps(2)
    paid = {paper.machine for paper in world.cloud.existing()}
    assert world.told(EventKind.RETURNED)[0].subject not in paid


def test_a_lost_machine_is_replaced_and_counts_as_interrupted() -> None:
    world = with_floor(1)
    world.until(lambda: world.ready == 1)
    (lost,) = world.planner.state.machines
    world.cloud.take(lost)
    world.step()
    assert world.told(EventKind.LOST)[0].subject == lost
    world.until(lambda: world.ready == 1)
    assert lost not in world.planner.state.machines
    assert [record.happened for record in world.records].count(Happened.INTERRUPTED) == 1


def test_one_listing_without_a_machine_loses_nothing() -> None:
    world = with_floor(2)
    world.until(lambda: world.ready == 2)
    world.cloud.faults = Faults(listing_empty=1.0)
    world.step()
    world.cloud.faults = Faults()
    world.steps(3)
    assert world.ready == 2
    assert world.told(EventKind.LOST) == []


def test_a_machine_whose_node_is_heard_of_is_not_lost_whatever_its_provider_lists() -> None:
    world = with_floor(1)
    world.until(lambda: world.ready == 1)
    world.heard = frozenset(world.planner.state.machines)
    world.cloud.faults = Faults(listing_empty=1.0)
    world.steps(20)
    assert world.ready == 1


def test_a_machine_that_vanishes_costs_until_its_end_is_confirmed() -> None:
    world = with_floor(1, budget_usd_per_h=2.0)
    world.until(lambda: world.ready == 1)
    world.cloud.faults = Faults(listing_empty=1.0, terminate_hangs=1.0)
    world.steps(20)
    assert world.told(EventKind.LOST)
    assert len(world.told(EventKind.ASKED)) == 1
    assert world.planner.state.spend_usd_per_h == pytest.approx(2.0)


def test_an_order_that_is_given_up_costs_until_its_cancellation_is_confirmed() -> None:
    file = file_of({"give_up_s": 90.0}, demand=[{**DEMAND, "floor": 1}], budget_usd_per_h=2.0)
    world = World(file, faults=Faults(never_comes=1.0, terminate_hangs=1.0, listing_empty=1.0))
    world.steps(20)
    assert len(world.told(EventKind.GIVEN_UP)) == 1
    assert len(world.told(EventKind.ASKED)) == 1
    world.cloud.faults = Faults()
    world.until(lambda: world.ready == 1)
    assert len(world.told(EventKind.ASKED)) == 2


def test_nothing_is_asked_of_a_silent_cloud_and_nothing_concluded() -> None:
    world = with_floor(2)
    world.until(lambda: world.ready == 2)
    world.is_silent = True
    decision = world.steps(30, 9.0)
    assert world.ready == 2
    assert not decision.requests
    assert decision.left_out[0].why == "paper does not answer"
    assert len(world.told(EventKind.SILENT)) == 1


def test_unfit_hardware_goes_back_and_is_not_taken_again() -> None:
    world = World(
        file_of(demand=[{**DEMAND, "floor": 1}]), Market(unfit_probability=1.0, lead_time_spread=0.0)
    )
    world.hardware = "iron-1"
    world.until(lambda: bool(world.told(EventKind.UNFIT)))
    assert "Xid 79" in world.told(EventKind.UNFIT)[0].words
    world.cloud.market = Market(lead_time_spread=0.0)
    world.until(lambda: len(world.told(EventKind.UNFIT)) == 2)
    assert world.told(EventKind.UNFIT)[1].words.endswith("found unfit: Xid 79 on GPU 0 (simulated)")
    world.hardware = "iron-2"
    world.until(lambda: world.ready == 1)
    assert len(world.cloud.existing()) == 1


def test_orders_name_the_hardware_to_avoid() -> None:
    world = World(
        file_of(demand=[{**DEMAND, "floor": 1}]), Market(unfit_probability=1.0, lead_time_spread=0.0)
    )
    world.hardware = "iron-1"
    world.until(lambda: bool(world.planner.state.bad))
    world.clock.advance(120.0)
    assert world.step().requests[0].avoid == ("iron-1",)


# -- the solver ----------------------------------------------------------------------------------------------


def test_without_a_solver_the_last_plan_stands_and_then_a_fixed_buffer() -> None:
    solver = BrokenSolver()
    world = World(file_of({"plan_stands_s": 120.0, "buffer_share": 0.5}), make_plan=solver)
    world.steps(8, 4.0)
    assert world.ready >= 4
    solver.is_broken = True
    before = set(world.planner.state.machines)
    assert world.step(4.0).source is Source.LAST_PLAN
    assert set(world.planner.state.machines) >= before
    decision = world.steps(12, 4.0)
    assert decision.source is Source.FIXED_BUFFER
    world.steps(20, 4.0)
    assert world.ready == 6
    assert decision.scarcity == world.planner.state.scarcity
    solver.is_broken = False
    assert world.step(4.0).source is Source.PLAN
    assert len(world.told(EventKind.SOLVER_FAILED)) == 33


def test_the_fixed_buffer_gives_back_what_is_too_much() -> None:
    solver = BrokenSolver()
    world = World(file_of({"plan_stands_s": 0.0}), make_plan=solver)
    solver.is_broken = True
    world.until(lambda: world.ready >= 6, 5.0)
    world.until(lambda: len(world.cloud.existing()) == 1, 0.0)
    world.steps(10, 0.0)
    assert world.ready == 1


# -- clocks and crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0, -30.0, 3_600.0])
def test_a_clock_that_jumps_changes_no_age(jump_s: float) -> None:
    world = World(file_of(demand=[{**DEMAND, "floor": 2}]), Market(lead_time_s=600.0, lead_time_spread=0.0))
    world.steps(3)
    before = world.planner.state
    world.planner.state = shifted(before, 0.0)
    assert world.planner.state == before
    now_s = world.clock.wall() + STEP_S + jump_s
    decision = world.planner.step(now_s, replace(world.seen(), jumped_s=max(jump_s, 0.0)))
    ages = [now_s - order.asked_at_s for order in world.planner.state.orders.values()]
    if jump_s > 0:
        assert ages == pytest.approx([45.0, 45.0])
    else:
        assert all(0.0 <= age <= 45.0 for age in ages)
    jumps = [event for event in decision.events if event.kind is EventKind.CLOCK_JUMPED]
    assert len(jumps) == 1
    assert not decision.cancellations


def test_a_restart_goes_on_where_the_last_planner_was() -> None:
    world = with_floor(3)
    world.steps(2)
    world.restart()
    world.steps(1)
    world.restart()
    world.until(lambda: world.ready == 3)
    assert len(world.told(EventKind.ASKED)) == 3
    assert len(world.cloud.existing()) == 3


def test_a_crash_between_the_ledger_and_the_calls_loses_no_request() -> None:
    world = with_floor(2)
    decision = world.step(acts=False)
    assert len(decision.requests) == 2
    world.restart()
    again = world.step()
    assert [order.id for order in again.requests] == [order.id for order in decision.requests]
    world.until(lambda: world.ready == 2)


def test_a_crash_before_the_ledger_makes_no_orphan() -> None:
    world = with_floor(2)
    world.step()
    before = world.planner.state
    world.slots[0] += [5.0]
    world.step(acts=False)
    world.restart(before)
    world.until(lambda: world.ready >= 2)
    known = set(world.planner.state.machines)
    assert {paper.machine for paper in world.cloud.existing()} <= known


def test_a_state_of_a_newer_version_or_of_somebody_else_is_refused() -> None:
    state = FleetState("test", "0123abcd")
    assert FleetState.from_json(state.to_json()) == state
    with pytest.raises(SystemUnfit, match="version 2"):
        FleetState.from_json(replace(state, version=2).to_json())
    with pytest.raises(SystemUnfit, match="cannot be used"):
        FleetState.from_json(b'{"fleet": 3}')
