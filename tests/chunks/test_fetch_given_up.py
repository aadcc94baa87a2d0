"""A blob that nobody wants any more: who waits is told at once, and others are not disturbed."""

from __future__ import annotations

from tests.chunks.fetch_fakes import PATIENCE_S, Asker, FakeSsd, FakeTier, MakeFetcher, far_apart

from glowplug.chunks.fetch import Outcome, Priority
from glowplug.types.errors import Unavailable


def test_who_waits_for_a_blob_that_is_given_up_is_told_at_once(make_fetcher: MakeFetcher) -> None:
    blob, other, asker, ssd = far_apart(12), far_apart(1, seed=1), Asker(), FakeSsd()
    tier = FakeTier("region", {**blob.packs, **other.packs})
    tier.hold()
    fetcher = make_fetcher(ssd, tier, connections=3, reserved_for_reads=1)
    prefetch = fetcher.prefetch(blob.remote, range(6, 12))
    for index in range(6):
        fetcher.want(blob.remote, index, Priority.READ, asker.done(index))
    others: list[Outcome] = []
    fetcher.want(other.remote, 0, Priority.READ, others.append)
    held = tier.wait_for_requests(3)
    fetcher.give_up(blob.remote)
    assert all(isinstance(outcome, Unavailable) for outcome in asker.wait(*range(6)))
    assert prefetch.is_over
    assert fetcher.stats().given_up == 6
    assert not others
    again: list[Outcome] = []
    fetcher.want(blob.remote, 0, Priority.READ, again.append)
    assert isinstance(again[0], Unavailable), "refused for a moment: the kernel asks twice"
    tier.release()
    assert fetcher.fetch(other.remote, 0, PATIENCE_S) == other.contents[0]
    blob.remote.refused_until_s = 0.0
    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]
    assert held
