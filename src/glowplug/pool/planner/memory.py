"""What the past says of each pool, kept while the planner lives: estimates are made anew only when something
happened, or after a while.
"""

from __future__ import annotations

from collections.abc import Iterable

from glowplug.pool.market.history import lives
from glowplug.pool.market.supply_log import Happened, SupplyRecord
from glowplug.pool.market_now import Estimates

_KEPT_RECORDS = 20_000
_STALE_S = 300.0
_OVER = frozenset({Happened.FAILED, Happened.INTERRUPTED, Happened.GIVEN_BACK})


class MarketMemory:
    """The supply log's records, the newest 20,000 of them, and estimates from them."""

    def __init__(self, past: Iterable[SupplyRecord] = ()) -> None:
        self._records = list(past)[-_KEPT_RECORDS:]
        self._estimates: Estimates | None = None
        self._made_at_s = 0.0

    def add(self, records: Iterable[SupplyRecord]) -> None:
        """More happened."""
        before = len(self._records)
        self._records.extend(records)
        if len(self._records) > before:
            self._estimates = None
        if len(self._records) > 2 * _KEPT_RECORDS:
            del self._records[:-_KEPT_RECORDS]

    def estimates(self, now_s: float, living: frozenset[str]) -> Estimates:
        """Of this moment. ``living``: orders of machines that are up; of any other that the log thinks is
        up, or under way, nothing is believed.
        """
        if self._estimates is None or not 0 <= now_s - self._made_at_s < _STALE_S:
            over = {record.request for record in self._records if record.happened in _OVER}
            known = [record for record in self._records if record.request in over or record.request in living]
            settled = [life for life in lives(known, now_s).lives if not life.is_awaited]
            self._estimates, self._made_at_s = Estimates(settled), now_s
        return self._estimates
