"""``doctor``: whether this machine is fit, what is missing, and with ``--fix`` getting it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli.checks import Check, CheckResult, Level, run_checks
from glowplug.cli.checks_kernel import kernel_checks
from glowplug.cli.checks_tools import tool_checks
from glowplug.cli.install import install_packages, install_runsc
from glowplug.cli.machine import LocalMachine, Machine
from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import print_error, print_json
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.observe.waterfall import printable
from glowplug.types.errors import DeadlineExceeded, SystemUnfit

_MARKS = {Level.OK: ("ok  ", "green"), Level.WARN: ("warn", "yellow"), Level.FAIL: ("FAIL", "bold red")}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(doctor)


def doctor(
    context: typer.Context,
    fix: Annotated[
        bool, typer.Option("--fix", help="Install what can be installed (Debian, as root).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every system piece: what was found, why it matters, how to get it. Exit code 1 if one fails."""
    session = session_of(context)
    machine = LocalMachine()
    checks = [*kernel_checks(session.state.root), *tool_checks(session.state.root)]
    results = examine(session, checks, machine, shows=not as_json and not fix)
    if fix:
        repair(session, results)
        results = examine(session, checks, machine, shows=not as_json)
    if as_json:
        print_json(session, [result.to_dict() for result in results])
    elif not session.is_quiet:
        _print_verdict(session, results)
    if any(result.finding.level is Level.FAIL for result in results):
        raise typer.Exit(1)


def examine(session: Session, checks: list[Check], machine: Machine, *, shows: bool) -> list[CheckResult]:
    """Make all checks, showing each as soon as it is made."""
    results = []
    for result in run_checks(checks, machine):
        results.append(result)
        if shows and not (session.is_quiet and result.finding.level is Level.OK):
            _print_result(session, result)
    return results


def repair(session: Session, results: list[CheckResult]) -> None:
    """Install what is not fit and can be installed. What cannot be is told, and the rest still tried."""
    unfit = [result.check.fix for result in results if result.finding.level is not Level.OK]
    packages = [package for fix in unfit if fix is not None for package in fix.packages]
    try:
        if packages:
            with shown_progress(session, "Installing packages") as report:
                install_packages(packages, report)
    except (SystemUnfit, DeadlineExceeded) as error:
        print_error(session.messages, error)
    try:
        if any(fix is not None and fix.installs_runsc for fix in unfit):
            with shown_progress(session, "Installing runsc") as report:
                install_runsc(report)
    except (SystemUnfit, DeadlineExceeded) as error:
        print_error(session.messages, error)


def _print_result(session: Session, result: CheckResult) -> None:
    mark, style = _MARKS[result.finding.level]
    line = Text.assemble((mark, style), f"  {result.check.name}: {printable(result.finding.found)}")
    session.out.print(line, soft_wrap=True)
    if result.finding.level is not Level.OK:
        session.out.print(Text(f"      why: {result.check.why}", "bright_black"), soft_wrap=True)
        session.out.print(Text(f"      get: {result.check.get}", "bright_black"), soft_wrap=True)


def _print_verdict(session: Session, results: list[CheckResult]) -> None:
    failed = [result.check for result in results if result.finding.level is Level.FAIL]
    if not failed:
        session.out.print(Text("This machine is fit.", "green"))
        return
    session.out.print(Text(f"Not fit yet: {', '.join(check.name for check in failed)}.", "bold red"))
    if any(check.fix is not None for check in failed):
        session.out.print("Run `glowplug doctor --fix` to install what can be installed.")
