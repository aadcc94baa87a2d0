"""How many machines the market is believed to give: none after a failure, more by probes that pay off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from glowplug.pool.market.history import Life

FIRST_WAIT_S = 60.0
LONGEST_WAIT_S = 1_800.0


@dataclass(frozen=True)
class SupplyCap:
    """Of one pool; unchangeable: every event makes a new one.

    ``more``: so many would be granted at once, as far as is known; ``ceiling``: never believe in more. After
    a failure nothing is asked for ``wait_s``, then one machine is, as a probe. A grant that used all of
    ``more`` doubles it.
    """

    ceiling: int
    more: int
    wait_s: float = FIRST_WAIT_S
    failed_at_s: float | None = None

    @classmethod
    def untried(cls, ceiling: int) -> SupplyCap:
        """Nothing is known: believe in all of it until a request fails."""
        return cls(ceiling, ceiling)

    def allowed(self, now_s: float) -> int:
        """Machines that may be asked for now."""
        if self.more == 0 and self._has_waited(now_s):
            return min(1, self.ceiling)
        return self.more

    @property
    def growth_per_h(self) -> float:
        """How fast ``more`` may be expected to grow: a probe for each wait; 0 where nothing is held back."""
        return 0.0 if self.more >= self.ceiling else 3600.0 / self.wait_s

    def granted(self, machines: int, awaited: int = 0) -> SupplyCap:
        """So many came, and so many are still awaited."""
        if machines <= 0 or self.failed_at_s is None:
            return self
        grown = self.more if machines + awaited < self.more else max(2 * machines, 2 * self.more, 1)
        return replace(self, more=min(grown, self.ceiling), wait_s=max(self.wait_s / 2, FIRST_WAIT_S))

    def failed(self, machines: int, now_s: float) -> SupplyCap:
        """So many were refused: believe in what is left of it, and wait before trying again; twice as long
        each time in a row.
        """
        if machines <= 0:
            return self
        in_a_row = self.more == 0
        wait_s = min(self.wait_s * 2, LONGEST_WAIT_S) if in_a_row else self.wait_s
        left = 0 if self.more == self.ceiling else max(self.more - machines, 0)
        return replace(self, more=left, wait_s=wait_s, failed_at_s=now_s)

    def _has_waited(self, now_s: float) -> bool:
        if self.failed_at_s is None:
            return True
        # A clock that was set back must not make us wait for ever.
        waited_s = now_s - self.failed_at_s
        return waited_s >= self.wait_s or waited_s < -LONGEST_WAIT_S


def supply_cap(lives: Iterable[Life], ceiling: int) -> SupplyCap:
    """The cap after everything that happened in one pool."""
    events = sorted(
        (life.asked_at_s + life.lead_time_s, life.is_granted) for life in lives if not life.is_awaited
    )
    cap = SupplyCap.untried(ceiling)
    for at_s, is_granted in events:
        cap = cap.granted(1) if is_granted else cap.failed(1, at_s)
    return cap
