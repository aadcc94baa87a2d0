"""Prices as of a moment: the last known one, never a later one, with its age."""

from hypothesis import given
from hypothesis import strategies as st

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.prices import Offer, PriceBook

POOL = PoolId("gcp", "r", "m", Purchase.SPOT)


def offer(at_s: float, usd_per_h: float) -> Offer:
    return Offer(POOL, "L4", 1, usd_per_h, at_s)


def test_the_price_of_a_moment_is_the_last_one_before_it() -> None:
    book = PriceBook([offer(200, 2.0), offer(100, 1.0)])
    assert book.as_of(POOL, 99) is None
    quote = book.as_of(POOL, 199)
    assert quote is not None
    assert (quote.offer.usd_per_h, quote.age_s) == (1.0, 99)
    assert book.pools == [POOL]


def test_a_correction_of_the_same_moment_counts() -> None:
    book = PriceBook([offer(100, 1.0)])
    book.add([offer(100, 3.0)])
    quote = book.as_of(POOL, 100)
    assert quote is not None
    assert quote.offer.usd_per_h == 3.0


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0.1, 100)), min_size=1), st.floats(0, 1e9))
def test_no_price_of_the_future_is_ever_seen(prices: list[tuple[float, float]], now_s: float) -> None:
    quote = PriceBook([offer(*price) for price in prices]).as_of(POOL, now_s)
    known = [at_s for at_s, _ in prices if at_s <= now_s]
    assert (quote.offer.at_s if quote else None) == (max(known) if known else None)
