"""The picture worth showing: what fraction of starts was answered within a time, one curve per path.

Time runs on a logarithmic axis, because the point is the *ratio* between a cold start and a restored one.
Drawn with matplotlib (extra ``plot``) without a display and without touching its global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glowplug.observe.quantiles import answered_seconds, quantile
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import InvalidInput, SystemUnfit
from glowplug.types.replica import StartPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
# Okabe and Ito's palette: told apart by people with any colour vision, and in print.
_CURVES = {
    StartPath.COLD: ("cold start", "#0072B2"),
    StartPath.CPU_SNAPSHOT: ("restored from a CPU snapshot", "#D55E00"),
    StartPath.GPU_SNAPSHOT: ("restored from a GPU snapshot", "#009E73"),
    StartPath.PARKED: ("woken from parked", "#CC79A7"),
}
INK = "#333333"
FAINT = "#b0b0b0"
_MARKED_QUANTILES = (0.5, 0.99)
_ROOM = 2.4  # a label is about this much wide on a logarithmic axis of two decades


@dataclass(frozen=True)
class Curve:
    """One line of the picture: its name in the legend, its colour, and its seconds, ascending."""

    name: str
    colour: str
    seconds: Sequence[float]


def plot_cdf(records: list[ColdStartRecord], path: Path, title: str) -> None:
    """Write the cumulative distribution of answered starts to ``path``, a curve per path.

    Raises as :func:`plot_curves`.
    """
    curves = []
    for start_path in StartPath:
        name, colour = _CURVES.get(start_path, (start_path.value, INK))
        curves.append(Curve(name, colour, answered_seconds(records, start_path)))
    plot_curves(curves, path, title)


def plot_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Write the cumulative distribution of each curve to ``path`` (``.svg`` or ``.png``).

    Curves without a positive time are left out. Raises InvalidInput when none is left or the suffix is
    another one, SystemUnfit when matplotlib is not installed. The folder is made if need be.
    """
    check_suffix(path)
    curves = [curve for curve in curves if curve.seconds and curve.seconds[0] > 0]
    if not curves:
        raise InvalidInput(
            "There is no answered start to draw.",
            remedy="Ask a server that is scaled to zero, then try again.",
        )
    figure = new_figure()
    axes = figure.add_subplot()
    for curve in curves:
        _draw_curve(axes, curve)
    for q in _MARKED_QUANTILES:
        _label_quantile(axes, q, curves)
    _dress(axes, min(c.seconds[0] for c in curves), max(c.seconds[-1] for c in curves))
    legend = figure.legend(
        loc="outside upper left",
        title=textwrap.fill(title, 74, max_lines=2),
        title_fontproperties={"size": 12, "weight": "bold"},
        alignment="left",
        frameon=False,
        fontsize=9.5,
    )
    # A title is somebody's app name, not a formula.
    legend.get_title().set_parse_math(False)
    save_figure(figure, path)


def check_suffix(path: Path) -> None:
    """Raises InvalidInput for what is no name of a picture."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(
            f"A picture cannot be written as {path.name!r}.",
            remedy=f"End its name in {' or '.join(SUFFIXES)}.",
        )


def new_figure() -> Figure:
    """An empty one. Raises SystemUnfit when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemUnfit(
            f"Pictures need matplotlib, which cannot be imported ({error}).",
            remedy="pip install glowplug[plot]",
        ) from error
    return Figure(figsize=(8.0, 4.5), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write it; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")


def _draw_curve(axes: Axes, curve: Curve) -> None:
    """A step up by 1/n at every start; the legend names the figures."""
    n = len(curve.seconds)
    figures = " · ".join(
        f"p{q * 100:.0f} {format_seconds(quantile(curve.seconds, q))}" for q in _MARKED_QUANTILES
    )
    axes.step(
        [curve.seconds[0], *curve.seconds],
        [index / n for index in range(n + 1)],
        where="post",
        color=curve.colour,
        linewidth=2.2,
        solid_capstyle="round",
        label=f"{curve.name}: {figures}  (n = {n})",
    )


def _label_quantile(axes: Axes, q: float, curves: Sequence[Curve]) -> None:
    """Mark quantile ``q`` on every curve, with its seconds beside it where the next curve leaves room."""
    axes.axhline(q, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    values_s = [quantile(curve.seconds, q) for curve in curves]
    for index, (curve, value_s) in enumerate(zip(curves, values_s, strict=True)):
        axes.plot([value_s], [q], "o", markersize=7, color=curve.colour, markeredgecolor="white", zorder=3)
        others_s = values_s[:index] + values_s[index + 1 :]
        if any(value_s <= other_s < _ROOM * value_s for other_s in others_s):
            continue
        axes.annotate(
            f"p{q * 100:.0f}: {format_seconds(value_s)}",
            (value_s, q),
            xytext=(9, -13),
            textcoords="offset points",
            color=curve.colour,
            fontsize=10,
            fontweight="bold",
        )


def _dress(axes: Axes, fastest_s: float, slowest_s: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    axes.set_xscale("log")
    # Room on the right for the labels of the slowest curve, and a decade at least, so that ticks show.
    left_s = fastest_s / 1.5
    axes.set_xlim(left_s, max(slowest_s * 2.5, left_s * 10))
    axes.set_ylim(0, 1.04)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: _tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_xlabel("from request to answer (logarithmic)", color=INK)
    axes.set_ylabel("starts answered within", color=INK)
    axes.grid(which="major", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, which="both")


def format_seconds(value: float) -> str:
    """A measured duration, rounded to what matters: ``90 ms``, ``0.45 s``, ``3.0 s``, ``95 s``."""
    if value < 0.0995:
        return f"{value * 1000:.2g} ms"
    if value < 0.995:
        return f"{value:.2f} s"
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"


def _tick(seconds: float) -> str:
    """A round duration on the axis: ``50 ms``, ``2 s``."""
    return f"{seconds * 1000:g} ms" if seconds < 0.0995 else f"{seconds:g} s"
