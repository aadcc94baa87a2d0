"""``pool plan|prices``: which machines to keep ready, from files; no control plane is asked. Its neighbour
``pool_fleet`` has what keeps them ready.

The solvers are heavy and an extra, so nothing of ``glowplug.pool`` is imported before a command needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.session import Session
from glowplug.cli.text import format_age, format_seconds
from glowplug.types.clock import SystemClock
from glowplug.types.errors import InvalidInput, SystemUnfit

if TYPE_CHECKING:
    from glowplug.pool.report import PlanReport

_NOTHING = 1e-6

commands = typer.Typer(help="Which GPU machines to keep ready, and what they cost.", no_args_is_help=True)


class SolverChoice(StrEnum):
    """Which solver finds the prices."""

    GLOP = "glop"
    HIGHS = "highs"


@commands.command()
def plan(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Pools, prices, demand and limits.")],
    explain: Annotated[
        bool, typer.Option("--explain", help="Also what limits the plan and what one more GPU is worth.")
    ] = False,
    solver: Annotated[
        SolverChoice, typer.Option(help="Which solver finds the scarcity prices.")
    ] = SolverChoice.GLOP,
    fractions: Annotated[
        bool, typer.Option("--fractions", help="Parts of machines, too: quicker, for very large fleets.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.01, help="Seconds each solver may take.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Say which machines to ask for and give back now."""
    session = session_of(context)
    with pool_extra():
        from glowplug.pool.plan_file import read_plan_file
        from glowplug.pool.planning import situation
        from glowplug.pool.report import plan_report
    now = situation(read_plan_file(file), file.parent, SystemClock().wall())
    report = plan_report(now, solver.value, fractions, timeout_s)
    if as_json:
        print_json(session, report)
    else:
        print_plan(session, report, explain)


@commands.command()
def prices(
    context: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Price files: CSV or JSON, also .gz.")
    ],
    cloud: Annotated[
        str, typer.Option(metavar="NAME", help="Whose they are, where files do not say.")
    ] = "cloud",
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="Only this GPU kind.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="DATE", help="As known at this date or time (UTC); now by default.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="At most so many, the cheapest per GPU.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show what machines cost, the cheapest per GPU first, as known at a moment."""
    session = session_of(context)
    with pool_extra():
        from glowplug.pool.market.price_files import read_prices
        from glowplug.pool.market.prices import PriceBook
        from glowplug.pool.tables import moment_s
    try:
        now_s = moment_s(at) if at else SystemClock().wall()
    except ValueError as problem:
        raise InvalidInput(
            f"{at!r} is no date: {problem}.", remedy="Write 2026-07-30 or 2026-07-30T12:00."
        ) from problem
    book = PriceBook()
    for file in files:
        found = read_prices(file, cloud)
        book.add(found.offers)
        if found.refused:
            first = found.refused[0]
            session.say(f"{file}: {len(found.refused)} rows are no prices (line {first.line}: {first.why}).")
    quotes = [quote for pool in book.pools if (quote := book.as_of(pool, now_s)) is not None]
    quotes = [quote for quote in quotes if gpu in (None, quote.offer.gpu)]
    quotes.sort(key=lambda quote: (quote.offer.usd_per_h / quote.offer.gpus, str(quote.offer.pool)))
    if as_json:
        print_json(session, [
            {
                "pool": str(quote.offer.pool), "gpu": quote.offer.gpu, "gpus": quote.offer.gpus,
                "usd_per_h": quote.offer.usd_per_h, "usd_per_gpu_h": quote.offer.usd_per_h / quote.offer.gpus,
                "at_s": quote.offer.at_s, "age_s": quote.age_s,
            }
            for quote in quotes[:rows]
        ])  # fmt: skip
        return
    table: list[Row] = [
        [
            str(quote.offer.pool), f"{quote.offer.gpus} x {quote.offer.gpu}", f"{quote.offer.usd_per_h:.3f}",
            f"{quote.offer.usd_per_h / quote.offer.gpus:.3f}", format_age(quote.age_s),
        ]
        for quote in quotes[:rows]
    ]  # fmt: skip
    print_table(session, ["POOL", "GPUS", "USD/H", "USD/GPU-H", "AGE"], table, "No price was known then.")


@contextmanager
def pool_extra() -> Iterator[None]:
    """Imports of the extra that are missing become SystemUnfit with what to install."""
    try:
        yield
    except ImportError as problem:
        raise SystemUnfit(
            f"The solvers of pools are not installed: {problem}.", remedy="pip install 'glowplug[pool]'"
        ) from problem


def print_plan(session: Session, report: PlanReport, explain: bool) -> None:
    """Tables of what to do, what is short and what it costs; with ``explain`` also why."""
    for pool, why in report.left_out.items():
        session.say(f"{pool} may not grow: {why}.", "yellow")
    for remark in report.remarks:
        session.say(f"{remark}.", "yellow")
    pools: list[Row] = [
        [
            line.pool, f"{line.gpus} x {line.gpu}", f"{line.price_usd_per_h:.2f}", str(line.up),
            str(line.under_way), _machines(line.ask, "bold green"), _machines(line.give_back, "bold yellow"),
            f"{line.peak_up:.4g}",
        ]
        for line in report.pools
    ]  # fmt: skip
    columns = ["POOL", "GPUS", "USD/H", "UP", "UNDER WAY", "ASK", "GIVE BACK", "MOST LATER"]
    print_table(session, columns, pools, "")
    session.out.print()
    demand: list[Row] = [
        [
            f"{line.gpu} x{line.gpus}", f"{line.needed:.4g}", f"{line.held:.4g}",
            _machines(line.missing, "bold red"), f"{line.peak_needed:.4g}", format_seconds(line.lead_time_s),
            f"{line.slot_usd_per_h:.2f}", line.basis,
        ]
        for line in report.demand
    ]  # fmt: skip
    columns = ["DEMAND", "SLOTS", "HELD", "MISSING", "PEAK", "LEAD TIME", "ONE MORE USD/H", "FORECAST"]
    print_table(session, columns, demand, "")
    _print_costs(session, report)
    if explain:
        _print_explanation(session, report)


def _machines(count: float, style: str) -> Text:
    return Text(f"{count:.4g}", style) if count > _NOTHING else Text("")


def _print_costs(session: Session, report: PlanReport) -> None:
    moment = datetime.fromtimestamp(report.planned_for_s, UTC)
    parts = {
        "rent": report.costs.rent_usd, "interruptions": report.costs.interruption_usd,
        "churn": report.costs.churn_usd, "missing slots": report.costs.miss_usd,
        "exposure": report.costs.exposed_usd, "over budget": report.costs.over_budget_usd,
    }  # fmt: skip
    spent = ", ".join(f"{name} {usd:.2f}" for name, usd in parts.items() if usd >= 0.005)
    gap = "" if report.gap is None else f", at most {report.gap:.2%} above the best in whole machines"
    session.out.print(
        f"\nPlanned for {moment:%Y-%m-%d %H:%M} UTC, "
        f"{report.horizon_s / 3600:.1f} h in {report.periods} periods, "
        f"by {report.solver}{gap}.\n{report.costs.total_usd:.2f} USD: {spent or 'nothing'}.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _print_explanation(session: Session, report: PlanReport) -> None:
    session.out.print(
        "\n[bold]What one more is worth[/bold] (in fractions of machines: integers have no prices)"
    )
    rows: list[Row] = [
        [
            f"{line.gpu} x{line.gpus}", f"{line.scarcity_usd_per_gpu_h:.2f}", f"{line.slot_usd_per_h:.2f}",
            f"{line.peak_slot_usd_per_h:.2f}", format_seconds(line.peak_in_s) if line.peak_in_s else "now",
        ]
        for line in report.demand
    ]  # fmt: skip
    print_table(session, ["DEMAND", "GPU USD/H", "SLOT USD/H", "AT MOST", "IN"], rows, "")
    session.out.print()
    rows = [
        [
            line.pool,
            f"{line.one_more_gpu_usd:.2f}",
            "; ".join(line.limits) or "nothing: it is used as it pays",
        ]
        for line in report.pools
    ]
    print_table(session, ["POOL", "ONE MORE GPU SAVES USD", "LIMITED BY"], rows, "")
    if report.one_more_budget_usd_per_h > _NOTHING:
        session.out.print(
            f"\nOne more USD/h of budget would save {report.one_more_budget_usd_per_h:.2f} USD."
        )
    if report.exposed_gpus > _NOTHING:
        session.out.print(
            f"\nIf the worst failure domain were lost now, {report.exposed_gpus:.4g} GPUs were missing."
        )
