"""Lead times, supply and hazards from lives of machines: against samples whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.hazards import HazardBook, interval_per_h
from glowplug.pool.market.history import Life
from glowplug.pool.market.lead_times import PRIOR, LeadTimeBook, kaplan_meier
from glowplug.pool.market.supply import FIRST_WAIT_S, LONGEST_WAIT_S, SupplyCap, supply_cap

POOL = PoolId("gcp", "us-central1", "a2", Purchase.SPOT)
SISTER = replace(POOL, region="us-east1")


def life(
    lead_time_s: float, pool: PoolId = POOL, is_granted: bool = True, is_failed: bool = False,
    up_s: float = 0.0, is_interrupted: bool = False, asked_at_s: float = 0.0,
) -> Life:  # fmt: skip
    return Life(pool, "A100", asked_at_s, lead_time_s, is_granted, is_failed, up_s, is_interrupted, False)


def test_kaplan_meier_is_the_textbook_s() -> None:
    # Grants after 1, 3, 3, 6; censored after 2 and 6: S = 5/6, then 5/6 x 2/4, then that x 1/2.
    durations = np.array([1.0, 2.0, 3.0, 3.0, 6.0, 6.0])
    times, shares = kaplan_meier(durations, np.array([True, False, True, True, True, False]))
    assert times.tolist() == [1, 3, 6]
    assert shares.tolist() == pytest.approx([1 / 6, 5 / 12, 5 / 24])


def test_requests_under_way_make_lead_times_longer_not_shorter() -> None:
    granted = [life(600.0) for _ in range(40)]
    waiting = [life(3_000.0, is_granted=False) for _ in range(40)]
    naive = LeadTimeBook(granted).of(POOL, "A100").quantile_s(0.9)
    censored = LeadTimeBook([*granted, *waiting]).of(POOL, "A100").quantile_s(0.9)
    assert naive == pytest.approx(600)
    assert censored > 600


def test_the_true_quantiles_are_found_under_censoring() -> None:
    rng = np.random.default_rng(1)
    true_s, seen_s = rng.exponential(900, 3_000), rng.uniform(0, 3_000, 3_000)
    observed = [life(min(t, c), is_granted=t <= c) for t, c in zip(true_s, seen_s, strict=True)]
    found = LeadTimeBook(observed).of(POOL, "A100")
    for share in (0.25, 0.5, 0.75):
        assert found.quantile_s(share) == pytest.approx(-900 * np.log(1 - share), rel=0.12)


def test_a_pool_without_grants_borrows_from_its_sisters_and_one_with_many_does_not() -> None:
    book = LeadTimeBook([life(120.0, SISTER)] * 60 + [life(1_500.0, replace(POOL, region="eu"))] * 60)
    unknown = book.of(POOL, "A100")
    assert unknown.grants == 0
    assert unknown.quantile_s(0.4) == pytest.approx(120)
    assert book.of(SISTER, "A100").quantile_s(0.8) == pytest.approx(120)
    assert LeadTimeBook([]).of(POOL, "A100").quantile_s(0.5) == PRIOR.quantile_s(0.5)


@given(st.lists(st.tuples(st.floats(0, 5_000), st.booleans()), max_size=30), st.floats(0, 6_000))
def test_distributions_stay_distributions(seen: list[tuple[float, bool]], waited_s: float) -> None:
    found = LeadTimeBook([life(lead_s, is_granted=granted) for lead_s, granted in seen]).of(POOL, "A100")
    for known in (found, found.remaining(waited_s)):
        assert known.shares.sum() == pytest.approx(1)
        assert (np.diff(known.times_s) > 0).all()
        assert 0 <= known.grant_probability <= 1
        atoms = known.atoms()
        assert sum(weight for _, weight in atoms) == pytest.approx(known.grant_probability)
        assert [lead_s for lead_s, _ in atoms] == sorted(lead_s for lead_s, _ in atoms)


def test_who_has_waited_long_is_less_likely_to_be_served() -> None:
    known = LeadTimeBook([life(600.0)] * 30 + [life(30.0, is_granted=False, is_failed=True)] * 10).of(
        POOL, "A100"
    )
    assert known.grant_probability == pytest.approx(0.75, abs=0.05)
    assert known.remaining(900.0).grant_probability < known.grant_probability


def test_supply_falls_on_failure_and_recovers_by_probes_that_pay_off() -> None:
    cap = SupplyCap.untried(16)
    assert cap.allowed(0.0) == 16
    cap = cap.failed(1, 0.0)
    assert cap.allowed(FIRST_WAIT_S - 1) == 0
    assert cap.allowed(FIRST_WAIT_S) == 1
    sizes = []
    for _ in range(6):
        cap = cap.granted(cap.allowed(FIRST_WAIT_S))
        sizes.append(cap.allowed(FIRST_WAIT_S))
    assert sizes == [2, 4, 8, 16, 16, 16]


def test_failures_in_a_row_make_probes_rare_but_never_stop_them() -> None:
    cap, now_s, waits = SupplyCap.untried(4), 0.0, []
    for _ in range(12):
        cap = cap.failed(1, now_s)
        waits.append(cap.wait_s)
        now_s += cap.wait_s
        assert cap.allowed(now_s) == 1
    assert waits[0] == FIRST_WAIT_S
    assert waits[-1] == LONGEST_WAIT_S
    assert cap.granted(1).wait_s < LONGEST_WAIT_S


def test_a_clock_set_back_does_not_stop_probes() -> None:
    assert SupplyCap.untried(4).failed(1, 1e9).allowed(1e9 - 10 * LONGEST_WAIT_S) == 1


def test_the_cap_follows_from_the_log() -> None:
    failed = life(30.0, is_granted=False, is_failed=True, asked_at_s=100.0)
    assert supply_cap([failed], 8).allowed(131.0) == 0
    assert supply_cap([failed, life(60.0, asked_at_s=400.0)], 8).allowed(500.0) == 2
    assert supply_cap([], 8).allowed(0.0) == 8
    assert supply_cap([failed], 0).allowed(1e6) == 0


def test_hazards_are_events_over_hours_with_the_exact_interval() -> None:
    many = [life(60.0, up_s=3_600.0, is_interrupted=index < 50) for index in range(1_000)]
    found = HazardBook(many).of(POOL, "A100")
    assert found.per_h == pytest.approx(0.05, rel=0.05)
    assert (found.low_per_h, found.high_per_h) == pytest.approx((0.03711, 0.06592), rel=1e-3)
    assert interval_per_h(0, 10.0) == (0.0, pytest.approx(0.36889, rel=1e-3))
    assert interval_per_h(0, 0.0) == (0.0, float("inf"))


def test_a_pool_that_was_never_up_is_believed_to_be_as_its_sisters() -> None:
    book = HazardBook(
        [life(60.0, SISTER, up_s=3_600.0, is_interrupted=index % 2 == 0) for index in range(500)]
    )
    assert 0.2 < book.of(POOL, "A100").per_h < 0.55
    assert HazardBook([]).of(POOL, "A100").per_h == pytest.approx(0.05)
