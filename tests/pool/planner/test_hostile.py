"""Whatever a provider does: never more spend than the limit, no orphan in the end, the last plan stands."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.pool.planner.state import Standing
from glowplug.pool.providers.simulated import Faults, Market

from .world import POOL, BrokenSolver, World, file_of

_CENT = 1e-6
_chance = st.sampled_from([0.0, 0.0, 0.2, 0.6])


@dataclass(frozen=True)
class Turn:
    """What happens in one step of a story."""

    needed: float
    crashes: str
    solver_fails: bool
    seconds: float


_turns = st.builds(
    Turn,
    needed=st.sampled_from([0.0, 1.0, 3.0, 6.0, 6_000.0]),
    crashes=st.sampled_from(["no", "no", "no", "before", "between"]),
    solver_fails=st.sampled_from([False, False, False, True]),
    seconds=st.sampled_from([15.0, 15.0, 15.0, 60.0, 600.0]),
)
_markets = st.builds(
    Market,
    lead_time_s=st.sampled_from([10.0, 60.0, 300.0]),
    lead_time_spread=st.sampled_from([0.0, 0.5]),
    grant_probability=st.sampled_from([1.0, 0.5]),
    interruptions_per_h=st.sampled_from([0.0, 6.0]),
    capacity=st.sampled_from([2, 1_000]),
    unfit_probability=st.sampled_from([0.0, 0.3]),
)
_honest = st.builds(
    Faults,
    request_hangs=_chance,
    never_comes=_chance,
    listing_hangs=_chance,
    listing_empty=_chance,
    listing_lacks=_chance,
    terminate_hangs=_chance,
)
"""It fails in every way, and still what it confirms is so."""
_lying = st.builds(
    Faults,
    request_hangs=_chance,
    grants_twice=_chance,
    never_comes=_chance,
    ignores_ids=_chance,
    listing_hangs=_chance,
    listing_empty=_chance,
    listing_lacks=_chance,
    terminate_hangs=_chance,
    terminate_ignored=_chance,
    cancel_ignored=_chance,
    loses_tags=_chance,
    strangers=_chance,
)


def world_of(limit: float, market: Market, faults: Faults, seed: int) -> World:
    pools = [
        {**POOL, "quota": 8},
        {**POOL, "machine": "big", "gpus": 4, "price_usd_per_h": 7.0, "quota": 3, "purchase": "spot"},
    ]
    file = file_of({"give_up_s": 1_200.0, "release_after_s": 30.0}, pools=pools, budget_usd_per_h=limit)
    return World(file, market, faults, seed, BrokenSolver())


def play(world: World, turn: Turn) -> None:
    """One step, perhaps with a crash in it; then everything that must hold after any step."""
    assert isinstance(world.make_plan, BrokenSolver)
    world.make_plan.is_broken = turn.solver_fails
    before = world.planner.state
    decision = world.step(turn.needed, seconds=turn.seconds, acts=turn.crashes == "no")
    check_limit(world)
    for order in decision.requests:
        assert order.id in world.planner.state.orders
    if turn.crashes == "before":
        world.restart(before)  # nothing was written down, and so nothing was done
    elif turn.crashes == "between":
        world.restart()


def check_limit(world: World) -> None:
    """All that was asked for is within limit and quota, also what is on its way out."""
    state, limit = world.planner.state, world.file.budget_usd_per_h
    assert limit is not None
    strays_usd_per_h = sum(held.usd_per_h for held in state.machines.values() if held.is_stray)
    assert state.spend_usd_per_h - strays_usd_per_h <= limit + _CENT
    quotas = {entry.id: entry.quota for entry in world.file.pools}
    for pool, quota in quotas.items():
        held = [held for held in state.machines.values() if held.pool == pool and not held.is_stray]
        assert len(held) + sum(order.pool == pool for order in state.orders.values()) <= quota


def recover(world: World) -> None:
    """The provider becomes honest; after a while nothing of its lies is left."""
    world.cloud.faults = Faults()
    assert isinstance(world.make_plan, BrokenSolver)
    world.make_plan.is_broken = False
    for _ in range(6):
        world.step(1.0, seconds=600.0)
        check_limit(world)
    world.steps(3, 1.0)
    known = {
        name for name, held in world.planner.state.machines.items() if held.standing is not Standing.RETURNING
    }
    orders = set(world.planner.state.orders)
    for paper in world.cloud.existing():
        assert paper.machine in known or paper.order in orders


@settings(max_examples=25, deadline=None)
@given(
    limit=st.sampled_from([0.0, 3.0, 9.0, 40.0]),
    market=_markets,
    faults=_honest,
    turns=st.lists(_turns, min_size=3, max_size=14),
    seed=st.integers(0, 999),
)
def test_what_is_billed_is_never_above_the_limit(
    limit: float, market: Market, faults: Faults, turns: list[Turn], seed: int
) -> None:
    world = world_of(limit, market, faults, seed)
    for turn in turns:
        play(world, turn)
        assert world.billed_usd_per_h <= limit + _CENT
    recover(world)
    assert world.billed_usd_per_h <= limit + _CENT


@settings(max_examples=25, deadline=None)
@given(
    limit=st.sampled_from([0.0, 9.0, 40.0]),
    market=_markets,
    faults=_lying,
    turns=st.lists(_turns, min_size=3, max_size=14),
    seed=st.integers(0, 999),
)
def test_a_provider_that_lies_gets_nothing_more_and_keeps_no_orphan(
    limit: float, market: Market, faults: Faults, turns: list[Turn], seed: int
) -> None:
    world = world_of(limit, market, faults, seed)
    for turn in turns:
        play(world, turn)
    recover(world)
    assert world.billed_usd_per_h <= limit + _CENT


@settings(max_examples=25, deadline=None)
@given(turns=st.lists(_turns, min_size=4, max_size=12), seed=st.integers(0, 99))
def test_without_a_solver_no_machine_that_the_last_plan_kept_is_given_back(
    turns: list[Turn], seed: int
) -> None:
    world = world_of(40.0, Market(lead_time_s=10.0), Faults(), seed)
    world.until(lambda: world.ready >= 3, 6.0)
    assert isinstance(world.make_plan, BrokenSolver)
    world.make_plan.is_broken = True
    kept = {held.machine for held in world.standing(Standing.READY)}
    started_s = world.clock.wall()
    for turn in turns:
        world.step(turn.needed)
        if world.clock.wall() - started_s > world.file.run.plan_stands_s - 60:
            break
        assert kept <= {held.machine for held in world.standing(Standing.READY)}
