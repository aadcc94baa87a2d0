"""Distributions as people write them down: a few quantiles, straight lines between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

Floats = NDArray[np.float64]

REPORTED = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def _checked(table: dict[float, float]) -> dict[float, float]:
    shares = sorted(table)
    values = [table[share] for share in shares]
    if not shares or not 0 <= shares[0] <= shares[-1] <= 1:
        raise ValueError("a table of quantiles has at least one, and shares from 0 to 1")
    if not np.isfinite(values).all() or values[0] < 0 or sorted(values) != values:
        raise ValueError("quantiles are seconds, not negative, and do not fall")
    return dict(zip(shares, values, strict=True))


QuantileTable = Annotated[dict[float, float], AfterValidator(_checked)]
"""Share to seconds. Beyond the first and the last share the first and the last value hold."""


def draw(table: Mapping[float, float], uniform: Floats) -> Floats:
    """A value for each number between 0 and 1."""
    return np.interp(uniform, list(table), list(table.values()))


def draw_one(table: Mapping[float, float], rng: np.random.Generator) -> float:
    """One value."""
    return float(np.interp(rng.random(), list(table), list(table.values())))


def table_of(values: Sequence[float]) -> dict[float, float]:
    """The quantiles of measured values. Raises ValueError for none."""
    if not len(values):
        raise ValueError("no values have no quantiles")
    return {share: float(np.quantile(values, share)) for share in REPORTED}
