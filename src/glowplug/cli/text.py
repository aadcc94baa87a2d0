"""How times and temperatures look to people, and how people write durations."""

from __future__ import annotations

import re

from glowplug.observe.durations import format_seconds as format_seconds
from glowplug.types.errors import InvalidInput
from glowplug.types.replica import Heat, HeatView

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>s|m|h|d|w)?")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}

_HEAT_WORDS = {
    Heat.SNAPSHOT: "snapshot on SSD",
    Heat.REGION: "snapshot in the region",
    Heat.IMAGE: "image only",
}


def heat_words(view: HeatView | None) -> str:
    """The rung of the heat ladder; nothing where nobody could say."""
    return "" if view is None else _HEAT_WORDS.get(view.heat, view.heat.value)


def format_age(seconds: float) -> str:
    """How long ago, in its largest unit: ``5 s``, ``12 min``, ``3 h``, ``2 d``."""
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds / size))} {unit}"
    return f"{int(seconds / 86_400)} d"


def parse_duration_s(text: str) -> float:
    """``90``, ``90s``, ``15m``, ``1h``, ``2d`` in seconds. Raises InvalidInput for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a duration.",
            remedy="Write a number and a unit: 90s, 15m, 1h, 2d, 1w.",
        )
    return float(match["number"]) * _UNIT_SECONDS[match["unit"] or "s"]
