"""The picture of a comparison: what each policy costs, and how long one request in a hundred waits.

Policies that differ in one number are joined by a line. Both axes are logarithmic; waits below a tenth of a
second are drawn there.
"""

from __future__ import annotations

from pathlib import Path

from glowplug.observe.plot import FAINT, INK, check_suffix, new_figure, save_figure
from glowplug.simulator.result import Comparison, PolicyLine

_LEAST_WAIT_S = 0.1
# Okabe and Ito's palette, as in observe.plot; the planner in the strongest colour.
_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_PLANNERS = {"planner log": "#D55E00", "planner live": "#8B2500"}


def plot_frontier(found: Comparison, path: Path) -> None:
    """Draw it into ``path`` (``.svg`` or ``.png``). Raises InvalidInput, SystemUnfit."""
    check_suffix(path)
    figure = new_figure()
    axes = figure.add_subplot()
    families: dict[str, list[PolicyLine]] = {}
    for line in found.policies:
        families.setdefault(line.family, []).append(line)
    colours = iter(_COLOURS * len(families))
    for family, lines in families.items():
        colour = _PLANNERS[family] if family in _PLANNERS else next(colours)
        ordered = sorted(lines, key=lambda line: line.usd_per_h.mean)
        axes.errorbar(
            [line.usd_per_h.mean for line in ordered],
            [max(line.wait_p99_s.mean, _LEAST_WAIT_S) for line in ordered],
            xerr=[line.usd_per_h.half_width or 0.0 for line in ordered],
            marker="o", color=colour, linewidth=1.6, markersize=6, capsize=2, label=family,
        )  # fmt: skip
        for line in ordered:
            axes.annotate(
                line.policy.removeprefix(f"{family} "),
                (line.usd_per_h.mean, max(line.wait_p99_s.mean, _LEAST_WAIT_S)),
                xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=colour,
            )  # fmt: skip
    axes.axvline(
        found.clairvoyant_usd_per_h.mean, color=INK, linewidth=1.2, linestyle=(0, (4, 3)),
        label="clairvoyant bound, nobody waits",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("USD per hour (logarithmic)", color=INK)
    axes.set_ylabel("p99 wait, s (logarithmic)", color=INK)
    axes.grid(which="both", color=FAINT, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
    save_figure(figure, path)
