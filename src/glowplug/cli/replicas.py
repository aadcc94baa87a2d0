"""``ps`` and ``logs``: what runs, and what it says."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli.options import JsonOption, OptionalAppArgument, TargetArgument, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.run import copy_log
from glowplug.cli.targets import find_replica
from glowplug.cli.text import format_age, format_seconds
from glowplug.observe.waterfall import format_bytes
from glowplug.types.clock import SystemClock
from glowplug.types.replica import ReplicaState, ReplicaView

_COLUMNS = ["REPLICA", "SERVER", "STATE", "PATH", "AGE", "START", "MEMORY", "ERROR"]
_STYLES = {
    ReplicaState.STARTING: "yellow",
    ReplicaState.READY: "green",
    ReplicaState.DRAINING: "yellow",
    ReplicaState.STOPPED: "bright_black",
    ReplicaState.FAILED: "red",
}


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(ps)
    app.command()(logs)


def ps(
    context: typer.Context,
    app: OptionalAppArgument = None,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Also replicas that were stopped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List replicas: their state, how they came to life and how long that took."""
    session = session_of(context)
    with session.client() as client:
        replicas = [
            replica
            for replica in client.replicas()
            if app in (None, replica.app) and (show_all or replica.state is not ReplicaState.STOPPED)
        ]
    if as_json:
        print_json(session, replicas)
        return
    now = SystemClock().wall()
    rows = [_row(replica, now) for replica in sorted(replicas, key=lambda replica: replica.created_at)]
    print_table(session, _COLUMNS, rows, "No replicas: servers start when they are asked something.")


def _row(replica: ReplicaView, now: float) -> list[str | Text]:
    state = replica.state.value
    if replica.state is ReplicaState.STARTING and replica.stage is not None:
        state = f"{state} ({replica.stage.value})"
    return [
        replica.id,
        f"{replica.app}/{replica.server}" + ("" if replica.purpose.value == "serve" else " (capture)"),
        Text(state, _STYLES[replica.state]),
        replica.path.value,
        format_age(now - replica.created_at),
        format_seconds(replica.ready_at - replica.created_at) if replica.ready_at else "",
        format_bytes(replica.memory_bytes) if replica.memory_bytes is not None else "",
        replica.error.message if replica.error else (replica.fallback_reason or ""),
    ]


def logs(
    context: typer.Context,
    target: TargetArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the replica ends, or Ctrl-C.")
    ] = False,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the last N lines.")] = None,
) -> None:
    """Print what a replica's server wrote."""
    session = session_of(context)
    with session.client() as client:
        replica = find_replica(client.replicas(), target)
        copy_log(session, client, replica.id, tail=tail, follow=follow)
