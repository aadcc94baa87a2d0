"""Scarcity prices as the planner publishes them: one small file, for whoever decides what to evict.

Needs nothing of the extra ``glowplug[pool]``: nodes read it that do not plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from glowplug.types.errors import SystemUnfit

PRICES_NAME = "prices.json"
STALE_S = 600.0
"""Prices older than this say nothing any more."""


@dataclass(frozen=True)
class ScarcityPrice:
    """What one more GPU in blocks of ``gpus`` is worth now, and one more replica of that size."""

    gpu: str
    gpus: int
    gpu_usd_per_h: float
    slot_usd_per_h: float


class _Line(BaseModel):
    gpu: str
    gpus: int = Field(ge=1)
    gpu_usd_per_h: float = Field(allow_inf_nan=False)
    slot_usd_per_h: float = Field(allow_inf_nan=False)


class _File(BaseModel):
    """``at_s``: Unix time of the step; ``source``: what that step rested on."""

    version: int = Field(default=1, ge=1, le=1)
    at_s: float = Field(allow_inf_nan=False)
    fleet: str
    source: str
    prices: list[_Line]


def publish_prices(
    folder: Path, fleet: str, at_s: float, source: str, prices: Iterable[ScarcityPrice]
) -> None:
    """Replace the file in one step: a reader sees the old prices or the new. Raises SystemUnfit."""
    lines = [_Line(**vars(price)) for price in prices]
    published = _File(at_s=at_s, fleet=fleet, source=source, prices=lines)
    file = folder / PRICES_NAME
    fresh = file.with_name(f".{file.name}.new")
    try:
        fresh.write_text(published.model_dump_json())
        fresh.replace(file)
    except OSError as problem:
        raise SystemUnfit(
            f"The scarcity prices cannot be written: {problem}.",
            remedy="Check the disk and who may write there.",
            file=str(file),
        ) from problem


def read_prices(folder: Path, now_s: float) -> tuple[ScarcityPrice, ...]:
    """What was published in the last ten minutes; nothing where nobody plans, or the file is not ours."""
    try:
        found = _File.model_validate_json((folder / PRICES_NAME).read_bytes())
    except (OSError, ValidationError):
        return ()
    if not 0 <= now_s - found.at_s <= STALE_S:
        return ()
    return tuple(ScarcityPrice(**line.model_dump()) for line in found.prices)
