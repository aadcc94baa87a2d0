"""What is normal at this time of day, scaled to how busy it is now. Deliberately simple: conformal residuals
above it make a bound of any baseline, a better one only a tighter bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glowplug.pool.forecast.series import DemandSeries, Floats

DAY_S = 86_400.0
_LEVEL_WINDOW_S = 1_800.0
_LEVEL_BOUNDS = (0.25, 4.0)
_SEASONS_NEEDED = 2
_SMOOTHED_S = 1_800.0


@dataclass(frozen=True)
class SeasonalBaseline:
    """Medians of the same time of day over earlier seasons, scaled by the last half hour; and without two
    whole seasons the mean of that half hour, for all time.
    """

    season_s: float = DAY_S

    def forecast(self, history: DemandSeries, steps: int) -> Floats:
        """Expected slots in each of the ``steps`` after the end of ``history``."""
        known = history.slots
        if not len(known):
            return np.zeros(steps)
        recent = max(1, round(_LEVEL_WINDOW_S / history.step_s))
        level = float(known[-recent:].mean())
        season = round(self.season_s / history.step_s)
        seasons = len(known) // season if season else 0
        if seasons < _SEASONS_NEEDED:
            return np.full(steps, level)
        whole = known[len(known) - seasons * season :].reshape(seasons, season)
        profile = _smoothed(np.median(whole, axis=0), max(1, round(_SMOOTHED_S / history.step_s)))
        usual = float(np.take(profile, np.arange(-recent, 0), mode="wrap").mean())
        ratio = np.clip(level / usual, *_LEVEL_BOUNDS) if usual > 0 else 1.0
        # How busy it is now says much about the next minutes and nothing about tomorrow.
        fade = np.exp(-np.arange(steps) * history.step_s / (self.season_s / 12))
        expected = np.take(profile, np.arange(steps), mode="wrap") * (1 + (ratio - 1) * fade)
        return np.asarray(expected if usual > 0 else np.maximum(expected, level * fade))


def _smoothed(profile: Floats, width: int) -> Floats:
    """A moving mean around the clock: a median of few days is ragged."""
    padded = np.concatenate((profile[-width:], profile, profile[:width]))
    total = np.cumsum(np.insert(padded, 0, 0.0))
    means = (total[2 * width + 1 :] - total[: -2 * width - 1]) / (2 * width + 1)
    return np.asarray(means[: len(profile)])
