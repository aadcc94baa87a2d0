"""Durations that operators set in the environment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from glowplug.types.errors import InvalidInput


def seconds_from(
    variable: str, environ: Mapping[str, str] | None = None, *, what: str, least_s: float
) -> float | None:
    """The variable's seconds, or None where it is not set; ``what`` says in an error what they are for.

    Raises InvalidInput for what is no number, or less than ``least_s``.
    """
    text = (os.environ if environ is None else environ).get(variable, "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least_s <= seconds < math.inf:
        raise InvalidInput(
            f"{variable} is {text[:50]!r}.",
            remedy=f"Unset it, or say for how many seconds {what}, {least_s:g} at least.",
        )
    return seconds
