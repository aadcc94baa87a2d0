"""``pool simulate``: policies compared on a trace, from a file. No control plane is asked, nothing rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.pools import commands, pool_extra
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.cli.text import format_seconds
from glowplug.observe.plot import check_suffix
from glowplug.types.errors import InvalidInput

if TYPE_CHECKING:
    from glowplug.simulator.policies.choice import Policy
    from glowplug.simulator.result import Comparison, Estimate


@commands.command()
def simulate(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Requests, pools, market, policies.")],
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1_000, help="So many worlds, instead of the file's.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="Only policies whose name begins so; may be repeated."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Draw cost against p99 wait into a file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare policies on a trace of requests: what they cost, and how long requests wait."""
    session = session_of(context)
    with pool_extra():
        from glowplug.simulator.compare import compare
        from glowplug.simulator.frontier import plot_frontier
        from glowplug.simulator.policies.choice import policies
        from glowplug.simulator.scenario import Scenario
        from glowplug.simulator.scenario_file import read_scenario_file
    if plot is not None:
        check_suffix(plot)  # now, and not after minutes
    found = read_scenario_file(file)
    chosen = _chosen(policies(found.policies), policy)
    scenario = Scenario(found, file.parent)
    for remark in scenario.remarks:
        session.say(f"{remark}.", "yellow")
    with shown_progress(session, "Simulating") as report:
        comparison = compare(scenario, chosen, range(seeds or found.seeds), report)
    if plot is not None:
        plot_frontier(comparison, plot)
        session.say(f"Drew {plot}.")
    if as_json:
        print_json(session, comparison)
    else:
        _print(session, comparison)


def _chosen(every: list[Policy], names: list[str] | None) -> list[Policy]:
    chosen = [one for one in every if not names or one.name.startswith(tuple(names))]
    if not chosen:
        raise InvalidInput(
            f"No policy of the file begins with {' or '.join(names or [])}.",
            remedy=f"It has: {', '.join(one.name for one in every)}.",
        )
    return chosen


def _print(session: Session, found: Comparison) -> None:
    rows: list[Row] = [
        [
            line.policy, _with_spread(line.usd_per_h, 2), format_seconds(line.wait_p50_s.mean),
            _wait(line.wait_p99_s), format_seconds(line.wait_mean_s.mean), f"{line.lost.mean:.4g}",
            f"{line.over_bound.mean:.2f}x", f"{line.utilisation.mean:.0%}", f"{line.peak_gpus.mean:.4g}",
            f"{line.saved_usd_per_h.mean:.2f}",
        ]
        for line in found.policies
    ]  # fmt: skip
    columns = [
        "POLICY", "USD/H", "WAIT P50", "P99", "MEAN", "LOST", "OVER BOUND", "UTILISED", "PEAK GPUS",
        "SAVED USD/H",
    ]  # fmt: skip
    print_table(session, columns, rows, "")
    worlds = (
        f"{len(found.seeds)} worlds; ± is the 95 % interval of the mean"
        if len(found.seeds) > 1
        else "1 world"
    )
    session.out.print(
        f"\n{found.requests:,} requests in {found.hours:g} h, {worlds}. "
        f"Nobody waiting costs {_with_spread(found.clairvoyant_usd_per_h, 2)} USD/h at least "
        "(clairvoyant bound).\n"
        "OVER BOUND: paid, over what somebody who knew everything would have paid for the same waits. "
        "SAVED: against keeping what the peak needs always on.\n"
        f"Simulated, nothing was rented; took {format_seconds(found.wall_s)}.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _with_spread(value: Estimate, digits: int) -> str:
    spread = "" if value.half_width is None else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread}"


def _wait(value: Estimate) -> str:
    spread = "" if value.half_width is None else f" ± {format_seconds(value.half_width)}"
    return f"{format_seconds(value.mean)}{spread}"
