"""GPU-seconds and USD add up, and nothing that is no amount gets in."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.pool.economics.meter import Meter, always_on_usd
from glowplug.types.errors import InvalidInput
from glowplug.types.usage import Use


def test_uses_are_booked_by_app_and_by_pool_and_what_is_left_is_unallocated() -> None:
    meter = Meter()
    meter.add_rent("spot", 100.0, 2.0)
    meter.add_use("chat", "spot", Use.SERVING, 40.0, 0.8)
    meter.add_use("chat", "spot", Use.IDLE, 10.0, 0.2)
    meter.add_use("code", "spot", Use.STARTING, 5.0, 0.1)
    report = meter.report(always_on_usd=5.0)
    chat, code = report.apps
    assert (chat.name, chat.serving_gpu_s, chat.idle_usd) == ("chat", 40.0, 0.2)
    assert code.starting_gpu_s == 5.0
    (pool,) = report.pools
    assert (pool.serving_gpu_s, pool.unallocated_gpu_s) == (40.0, 45.0)
    assert pool.unallocated_usd == pytest.approx(0.9)
    assert report.utilisation == pytest.approx(0.4)
    assert report.saved_usd == pytest.approx(3.0)


def test_a_parked_replica_costs_nothing_and_is_no_part_of_what_is_rented() -> None:
    meter = Meter()
    meter.add_rent("own", 10.0, 1.0)
    meter.add_use("chat", "own", Use.PARKED, 500.0, 7.0)
    (pool,) = meter.report().pools
    assert (pool.parked_gpu_s, pool.unallocated_gpu_s, pool.unallocated_usd) == (500.0, 10.0, 1.0)


def test_nothing_rented_is_no_utilisation() -> None:
    assert Meter().report().utilisation is None


@pytest.mark.parametrize("amounts", [(math.nan, 1.0), (1.0, math.inf), (-1.0, 0.0), (0.0, -0.1)])
def test_what_is_no_amount_is_refused(amounts: tuple[float, float]) -> None:
    meter = Meter()
    with pytest.raises(InvalidInput):
        meter.add_rent("spot", *amounts)
    with pytest.raises(InvalidInput):
        meter.add_use("chat", "spot", Use.IDLE, *amounts)
    assert meter.report().rented_usd == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["chat", "code"]), st.sampled_from(["a", "b"]), st.sampled_from(list(Use)),
            st.floats(0, 1e6), st.floats(0, 1e3),
        )
    )
)  # fmt: skip
def test_apps_and_pools_say_the_same(uses: list[tuple[str, str, Use, float, float]]) -> None:
    meter = Meter()
    for use in uses:
        meter.add_use(*use)
    report = meter.report()
    for name in ("serving", "starting", "idle", "parked"):
        by_app = math.fsum(getattr(line, f"{name}_gpu_s") for line in report.apps)
        by_pool = math.fsum(getattr(line, f"{name}_gpu_s") for line in report.pools)
        assert by_app == pytest.approx(by_pool)


def test_always_on_is_peak_times_price_times_hours() -> None:
    assert always_on_usd({"L4": 3, "A100": 1}, {"L4": 0.5, "A100": 2.0}, 10.0) == pytest.approx(35.0)
