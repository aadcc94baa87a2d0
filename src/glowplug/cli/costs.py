"""``costs``: what replicas did with their time, and what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glowplug.cli.options import DurationOption, JsonOption, OptionalAppArgument, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.pools import pool_extra
from glowplug.cli.session import Session
from glowplug.cli.text import format_age
from glowplug.types.clock import SystemClock

if TYPE_CHECKING:
    from glowplug.pool.economics.costs import CostReport


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(costs)


def costs(
    context: typer.Context,
    app: OptionalAppArgument = None,
    since: DurationOption = None,
    pools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml", help="A pool file: each GPU kind at the price of its cheapest pool."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how long replicas served, started, stood idle or were parked, and what their GPUs cost."""
    session = session_of(context)
    now_s = SystemClock().wall()
    prices = {} if pools is None else _prices(session, pools, now_s)
    from glowplug.pool.economics.costs import costs as added_up  # not before it is needed: see cli.pools

    with session.client() as client:
        spans = client.usage(app, since_s=since)
    first_s = min((span.starts_at for span in spans), default=now_s)
    report = added_up(spans, prices, now_s - first_s if since is None else since)
    if as_json:
        print_json(session, report)
    else:
        _print(session, report)


def _prices(session: Session, file: Path, now_s: float) -> dict[str, float]:
    """USD per GPU-hour by kind."""
    with pool_extra():
        from glowplug.pool.economics.costs import usd_per_gpu_h
        from glowplug.pool.plan_file import read_plan_file
        from glowplug.pool.planning import load_prices
    found, remarks = read_plan_file(file), list[str]()
    book = load_prices(found, file.parent, remarks)
    for remark in remarks:
        session.say(f"{remark}.", "yellow")
    return usd_per_gpu_h(found, book, now_s)


def _print(session: Session, report: CostReport) -> None:
    rows: list[Row] = [
        [
            f"{line.app}/{line.server}", f"{line.gpus} x {line.gpu}" if line.gpus else "",
            _hours(line.serving_s), _hours(line.starting_s), _hours(line.idle_s), _hours(line.parked_s),
            "" if line.utilisation is None else f"{line.utilisation:.0%}",
            "" if line.usd is None else f"{line.usd:.2f}",
            "" if line.saved_usd is None else f"{line.saved_usd:.2f}",
        ]
        for line in report.servers
    ]  # fmt: skip
    columns = ["SERVER", "GPUS", "SERVING", "STARTING", "IDLE", "PARKED", "USED", "USD", "SAVED"]
    print_table(session, columns, rows, "No replica was seen in this time.")
    if not report.servers:
        return
    if report.usd_per_gpu_h:
        session.out.print(
            f"\n{report.total_usd:.2f} USD for the GPUs of replicas in {format_age(report.period_s)}. "
            "SAVED: against one replica of each, always on. What else machines were paid for is "
            "no server's, and not in it.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    else:
        session.say("Give a pool file with --pools for prices.")


def _hours(seconds: float) -> str:
    """Replica-hours."""
    return f"{seconds / 3_600:.2f} h" if seconds else ""
