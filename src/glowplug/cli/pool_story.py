"""``pool story``: from nothing to an answer, one layer after the other. Nothing is asked or rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.pools import commands, pool_extra
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.observe.plot import Curve, check_suffix, format_seconds, plot_curves
from glowplug.observe.text_plot import TextCurve, curves_text

if TYPE_CHECKING:
    from glowplug.simulator.story import Spread, Story

_PLOT_COLUMNS = 100
# Okabe and Ito's palette, as in observe.plot; the last layer in the strongest colour.
_COLOURS = ("#333333", "#E69F00", "#56B4E9", "#0072B2", "#CC79A7", "#009E73", "#D55E00")
_MARKS = "○□△◇●■▲◆"


@commands.command()
def story(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="Stages without and with their layers, and whence.")
    ],
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the distribution (CDF) into a file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the whole way from renting a machine to an answer, and say what each layer saves of it."""
    session = session_of(context)
    with pool_extra():
        from glowplug.simulator.story import tell_story
        from glowplug.simulator.story_file import read_story_file
    if svg is not None:
        check_suffix(svg)  # now, and not after minutes
    with shown_progress(session, "Simulating") as report:
        told = tell_story(read_story_file(file), file.parent, report)
    if svg is not None:
        colours = [*_COLOURS[: len(told.rungs) - 1], _COLOURS[-1]]
        curves = [
            Curve(rung.layers, colours[index % len(colours)], rung.seconds)
            for index, rung in enumerate(told.rungs)
        ]
        plot_curves(curves, svg, told.title)
        session.say(f"Drew {svg}.")
    if as_json:
        print_json(session, told)
    else:
        _print(session, told)


def _print(session: Session, told: Story) -> None:
    session.out.print(f"{told.title}\n", markup=False, soft_wrap=True)
    stages: list[Row] = [
        [
            line.stage, line.layer, _typical(line.without), _typical(line.with_layer),
            format_seconds(line.with_layer.p99_s), format_seconds(line.saved_s), f"{line.share:.1%}",
        ]
        for line in told.stages
    ]  # fmt: skip
    print_table(session, ["STAGE", "LAYER", "WITHOUT", "WITH", "P99", "SAVED", "SHARE"], stages, "")
    session.out.print()
    rungs: list[Row] = [
        [
            rung.layers, *(format_seconds(value) for value in _values(rung.spread)), f"{rung.faster:,.4g}x"
        ]
        for rung in told.rungs
    ]  # fmt: skip
    print_table(session, ["START", "P50", "P90", "P99", "MEAN", "FASTER"], rungs, "")
    curves = [
        TextCurve(rung.layers, _MARKS[index % len(_MARKS)], rung.seconds)
        for index, rung in enumerate(told.rungs)
    ]
    picture = curves_text(curves, min(_PLOT_COLUMNS, session.out.width))
    session.out.print(f"\n{picture}\n\nWhere the seconds come from:", markup=False, highlight=False)
    for line in told.stages:
        words = f"  {line.stage}, without: {line.without_from}\n  {line.stage}, with: {line.with_from}"
        session.out.print(words, markup=False, highlight=False, soft_wrap=True)


def _typical(spread: Spread) -> str:
    return format_seconds(spread.mean_s)


def _values(spread: Spread) -> tuple[float, float, float, float]:
    return spread.p50_s, spread.p90_s, spread.p99_s, spread.mean_s
