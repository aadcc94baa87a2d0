"""The distribution of starts as a picture of characters, for the terminal that is always there.

The same curves as :mod:`glowplug.observe.plot` draws: what fraction was answered within a time, on a
logarithmic axis, one mark per path. Needs nothing but the records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glowplug.observe.plot import format_seconds
from glowplug.observe.quantiles import REPORTED_QUANTILES, answered_seconds, quantile
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.replica import StartPath

_MARKS = {
    StartPath.COLD: "●",
    StartPath.CPU_SNAPSHOT: "▲",
    StartPath.GPU_SNAPSHOT: "◆",
    StartPath.PARKED: "■",
}
_OTHER_MARK = "*"
_MARGIN = 6  # "100% ┤"
_LEAST_WIDTH = 30
_ROWS = 11  # every tenth, and the least
_TICKS = (1.0, 2.0, 5.0)
_TICK_ROOM = 8
_NAME_COLUMNS = 12


@dataclass(frozen=True)
class TextCurve:
    """One curve: its name, the character that it is drawn with, and its seconds, ascending."""

    name: str
    mark: str
    seconds: Sequence[float]


def cdf_text(records: list[ColdStartRecord], width: int) -> str:
    """A picture ``width`` characters wide, or one line that says that there is nothing to draw."""
    return curves_text(
        [
            TextCurve(path.value, _MARKS.get(path, _OTHER_MARK), answered_seconds(records, path))
            for path in StartPath
        ],
        width,
    )


def curves_text(curves: Sequence[TextCurve], width: int) -> str:
    """The same of any curves; those without a positive time are left out."""
    curves = [curve for curve in curves if curve.seconds and curve.seconds[0] > 0]
    if not curves:
        return "There is no answered start to draw."
    axis = _Axis(
        min(curve.seconds[0] for curve in curves),
        max(curve.seconds[-1] for curve in curves),
        max(width, _LEAST_WIDTH) - _MARGIN,
    )
    lines = [_row(curves, axis, row) for row in reversed(range(_ROWS))]
    lines += [f"     └{'─' * axis.columns}", f"      {axis.labels()}"]
    return "\n".join(line.rstrip() for line in [*lines, *_legend(curves)])


class _Axis:
    """Seconds to columns, logarithmically; a decade at least."""

    def __init__(self, fastest_s: float, slowest_s: float, columns: int) -> None:
        self.columns = columns
        self._left = math.log10(fastest_s)
        self._decades = max(math.log10(slowest_s) - self._left, 1.0)

    def column(self, seconds: float) -> int:
        """Where a time stands."""
        return round((math.log10(seconds) - self._left) / self._decades * (self.columns - 1))

    def labels(self) -> str:
        """Round times, as many as there is room for."""
        text = ""
        for decade in range(math.floor(self._left), math.ceil(self._left + self._decades) + 1):
            for tick in _TICKS:
                seconds = tick * 10.0**decade
                column = self.column(seconds)
                label = format_seconds(seconds)
                if column >= len(text) and 0 <= column <= self.columns - len(label):
                    text = f"{text:<{column}}{label:<{_TICK_ROOM}}"
        return text


def _row(curves: Sequence[TextCurve], axis: _Axis, row: int) -> str:
    """One line: each curve from where it was one row lower to where it is here."""
    step = 1 / (_ROWS - 1)
    cells = [" "] * axis.columns
    for curve in curves:
        here = axis.column(quantile(curve.seconds, row * step))
        below = axis.column(quantile(curve.seconds, max(0, row - 1) * step))
        for column in range(min(below + 1, here), here + 1):
            cells[column] = curve.mark
    return f"{row * step:4.0%} ┤{''.join(cells)}"


def _legend(curves: Sequence[TextCurve]) -> Sequence[str]:
    lines, columns = [""], max(_NAME_COLUMNS, *(len(curve.name) for curve in curves))
    for curve in curves:
        figures = "  ".join(
            f"p{q * 100:g} {format_seconds(quantile(curve.seconds, q))}" for q in REPORTED_QUANTILES
        )
        lines.append(f"{curve.mark} {curve.name:<{columns}}  n = {len(curve.seconds):<5} {figures}")
    return lines
