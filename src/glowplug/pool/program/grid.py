"""Time as the program sees it: fine where a decision is near, coarse where it is far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from glowplug.types.errors import InvalidInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_PERIODS = 2_000


@dataclass(frozen=True, eq=False)
class Grid:
    """Periods that follow each other without a gap. Seconds; ``starts_s[0]`` is 0, which is now."""

    lengths_s: Floats

    @classmethod
    def of(cls, lengths_s: list[float]) -> Grid:
        """Periods of these lengths, seconds. Raises InvalidInput for none, or one that is not positive."""
        lengths = np.asarray(lengths_s, dtype=np.float64)
        if not 1 <= len(lengths) <= _MAX_PERIODS or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise InvalidInput(
                "A plan's periods need positive lengths.", remedy=f"Give 1 to {_MAX_PERIODS} of them."
            )
        return cls(lengths)

    @classmethod
    def stretching(
        cls, periods: int = 96, first_s: float = 10.0, last_s: float = 900.0, horizon_s: float = 21_600.0
    ) -> Grid:
        """Lengths that grow by one factor from ``first_s`` to at most ``last_s`` and add up to ``horizon_s``.

        Raises InvalidInput when no factor of at least 1 does that.
        """
        if not (1 <= periods <= _MAX_PERIODS and 0 < first_s <= last_s < float("inf")):
            raise InvalidInput(
                f"No grid has {periods} periods from {first_s} s to {last_s} s.",
                remedy=f"Give 1 to {_MAX_PERIODS} periods, the first one no longer than the last.",
            )
        steps = np.arange(periods)

        def lengths(growth: float) -> Floats:
            # In logarithms: a large factor to a large power is beyond what a float holds.
            longest = np.log(last_s / first_s)
            return np.asarray(first_s * np.exp(np.minimum(steps * np.log(growth), longest)))

        shortest_s, longest_s = float(lengths(1.0).sum()), float(lengths(1e6).sum())
        if not shortest_s <= horizon_s <= longest_s:
            raise InvalidInput(
                f"{periods} periods of {first_s:g} to {last_s:g} s cannot add up to {horizon_s:g} s.",
                remedy=f"Choose a horizon from {shortest_s:g} to {longest_s:g} s, or other periods.",
            )
        return cls(lengths(brentq(lambda growth: lengths(growth).sum() - horizon_s, 1.0, 1e6, xtol=1e-12)))

    def __len__(self) -> int:
        return len(self.lengths_s)

    @property
    def starts_s(self) -> Floats:
        """When each period starts, seconds after now."""
        return np.concatenate(([0.0], np.cumsum(self.lengths_s)[:-1]))

    @property
    def hours(self) -> Floats:
        """How long each period is, in hours: the unit in which machines are rented."""
        return self.lengths_s / 3600.0

    def first_period_from(self, seconds: Floats) -> Ints:
        """The first period that starts no sooner than each of ``seconds``; ``len(self)`` is beyond the end.

        A millisecond of grace: sums of lengths are not exact.
        """
        return np.searchsorted(self.starts_s, seconds - 1e-3, side="left").astype(np.int64)
