"""What GPUs are worth now, for whoever decides which replica gives its own up: the pools' planner says it.

The planner of this machine writes its scarcity prices into the state directory
(:mod:`glowplug.pool.scarcity`). Where none runs, or its prices are old, decisions are made without.
"""

from __future__ import annotations

import math
from pathlib import Path

from glowplug.control.chips import is_alike
from glowplug.pool.scarcity import ScarcityPrice, read_prices
from glowplug.types.clock import Clock
from glowplug.types.spec import Resources

NO_GPU = "cpu"
"""The pools' kind of machines without a GPU."""
_EVERY_S = 5.0


class ScarcityPrices:
    """Prices in ``folder``, read when they are asked for, at most every five seconds."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._prices: tuple[ScarcityPrice, ...] = ()
        self._read_at_s = -math.inf

    def of(self, resources: Resources) -> float | None:
        """USD an hour that room for such a replica is worth; None where that is not known, or is nothing."""
        chip, count = resources.gpu_chip or NO_GPU, max(resources.gpu_count, 1)
        alike = sorted(
            (price for price in self._fresh() if is_alike(price.gpu, chip)), key=lambda price: price.gpus
        )
        if not alike:
            return None
        # Of the largest block that it fills; a class of its own size, where there is one.
        fitting = [price for price in alike if price.gpus <= count] or alike[:1]
        usd_per_h = fitting[-1].slot_usd_per_h * count / fitting[-1].gpus
        return usd_per_h if usd_per_h > 0 else None

    def _fresh(self) -> tuple[ScarcityPrice, ...]:
        now_s = self._clock.monotonic()
        if now_s - self._read_at_s >= _EVERY_S:
            self._prices, self._read_at_s = read_prices(self._folder, self._clock.wall()), now_s
        return self._prices
