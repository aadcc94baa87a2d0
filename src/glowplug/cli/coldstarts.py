"""``coldstarts``: where the seconds between "needed" and "answered" went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli.options import DurationOption, JsonOption, OptionalAppArgument, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.session import Session
from glowplug.cli.text import format_age, format_seconds
from glowplug.observe.plot import plot_cdf
from glowplug.observe.quantiles import answered_seconds, speedups, summarise
from glowplug.observe.text_plot import cdf_text
from glowplug.observe.waterfall import read_by_tier, waterfall
from glowplug.types.clock import SystemClock
from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.replica import Stage, StartPath

_STYLES = {Outcome.ANSWERED: "green", Outcome.FAILED: "red", Outcome.ABANDONED: "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(coldstarts)


def coldstarts(
    context: typer.Context,
    app: OptionalAppArgument = None,
    since: DurationOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many records.")] = 1000,
    rows: Annotated[int, typer.Option(min=0, help="How many the table shows; figures use all.")] = 20,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the distribution (CDF) here.")] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the distribution (CDF) into a file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show cold starts: the newest, a waterfall of a cold and a restored one, and quantiles."""
    session = session_of(context)
    with session.client() as client:
        records = client.cold_starts(app, since_s=since, limit=limit)
    if svg is not None:
        plot_cdf(records, svg, title=f"Cold starts of {app}" if app else "Cold starts")
        session.say(f"Drew {svg}.")
    if as_json:
        print_json(session, records)
    else:
        _print_records(session, records[:rows])
        _print_waterfalls(session, records)
        if plot:
            text = cdf_text(records, width=min(100, session.out.width))
            session.out.print(f"\n{text}", markup=False, highlight=False)
        _print_quantiles(session, records)


def _print_records(session: Session, records: list[ColdStartRecord]) -> None:
    now = SystemClock().wall()
    table = [
        [
            format_age(now - record.started_at),
            f"{record.app}/{record.server}",
            record.path.value,
            Text(record.outcome.value, _STYLES[record.outcome]),
            format_seconds(record.total_s),
            format_seconds(record.stages_s.get(Stage.MOUNT, 0.0)),
            ", ".join(f"{tier} {words}" for tier, words in read_by_tier(record).items()),
            record.error or record.fallback_reason or "",
        ]
        for record in records
    ]
    columns = ["AGE", "SERVER", "PATH", "OUTCOME", "TOTAL", "MOUNT", "READ", "REASON"]
    print_table(session, columns, table, "No cold starts yet: ask a server something.")


def _print_waterfalls(session: Session, records: list[ColdStartRecord]) -> None:
    answered = [record for record in records if record.outcome is Outcome.ANSWERED]
    cold = next((record for record in answered if record.path is StartPath.COLD), None)
    restored = next((record for record in answered if record.path is not StartPath.COLD), None)
    for title, record in (("Newest cold start", cold), ("Newest restored start", restored)):
        if record is not None:
            session.out.print(f"\n[bold]{title}[/bold]")
            session.out.print(waterfall(record, width=min(100, session.out.width)))


def _print_quantiles(session: Session, records: list[ColdStartRecord]) -> None:
    summaries = summarise(records)
    if not summaries:
        return
    session.out.print()
    table = [
        [
            summary.path.value, str(summary.n), *(
                format_seconds(seconds) if summary.n else ""
                for seconds in (summary.p50_s, summary.p90_s, summary.p99_s, summary.mean_s)
            ), str(summary.failed),
        ]
        for summary in summaries
    ]  # fmt: skip
    print_table(session, ["PATH", "N", "P50", "P90", "P99", "MEAN", "FAILED"], table, "")
    cold = answered_seconds(records, StartPath.COLD)
    for path in (path for path in StartPath if path is not StartPath.COLD):
        restored = answered_seconds(records, path)
        if cold and restored:
            ratios = ", ".join(f"p{s.q * 100:g} {s.ratio:.1f}x" for s in speedups(cold, restored))
            session.out.print(f"{path.value} is faster than cold by: {ratios}", markup=False)
