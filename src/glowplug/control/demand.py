"""How much a server was asked for lately: its requests a second, those of five minutes ago counting half."""

from __future__ import annotations

import math

from glowplug.types.clock import Clock

HALF_LIFE_S = 300.0


class RecentDemand:
    """Of one server. Two multiplications a request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._weight = 0.0
        self._noted_at_s = clock.monotonic()

    def note(self, requests: int = 1) -> None:
        """So many requests more."""
        self._weight = self._faded() + requests
        self._noted_at_s = self._clock.monotonic()

    def per_s(self) -> float:
        """Requests a second, as a mean that forgets."""
        return self._faded() * math.log(2) / HALF_LIFE_S

    def _faded(self) -> float:
        age_s = self._clock.monotonic() - self._noted_at_s
        return self._weight * math.exp2(-age_s / HALF_LIFE_S)
