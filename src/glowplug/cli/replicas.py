"""``ps`` and ``logs``: what runs, and what it says."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli.options import JsonOption, OptionalAppArgument, TargetArgument, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.run import copy_log
from glowplug.cli.targets import find_replica
from glowplug.cli.text import format_age, heat_words
from glowplug.control.messages import StatusView
from glowplug.observe.replica_words import replica_words
from glowplug.types.clock import SystemClock
from glowplug.types.replica import Heat, HeatView, ReplicaState, ReplicaView

_COLUMNS = ["REPLICA", "SERVER", "RUNTIME", "STATE", "PATH", "AGE", "START", "MEMORY", "SHARE"]
_DEVICE_COLUMN = "DEVICE"
_NODE_COLUMN = "NODE"
_STYLES = {
    ReplicaState.STARTING: "yellow",
    ReplicaState.READY: "green",
    ReplicaState.PARKED: "cyan",
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
    """List replicas: their state, how they came to life, how long that took, what memory they hold.

    A server that has none has a line, too: it says what its next start would find.
    """
    session = session_of(context)
    with session.client() as client:
        replicas = [
            replica
            for replica in client.replicas()
            if app in (None, replica.app) and (show_all or replica.state is not ReplicaState.STOPPED)
        ]
        resting = [] if as_json else _at_zero(client.status(heat=True), app)
    if as_json:
        print_json(session, replicas)
        return
    now = SystemClock().wall()
    has_gpus = any(replica.gpus or replica.suspended_bytes is not None for replica in replicas)
    has_nodes = any(replica.node is not None for replica in replicas)
    columns = [
        *_COLUMNS,
        *([_DEVICE_COLUMN] if has_gpus else []),
        *([_NODE_COLUMN] if has_nodes else []),
        "ERROR",
    ]
    replicas.sort(key=lambda replica: replica.created_at)
    rows = [_row(replica, now, has_gpus=has_gpus, has_nodes=has_nodes) for replica in replicas]
    for name, heat in resting:
        state = Text(f"zero ({heat_words(heat)})", "bright_black")
        rows.append(["", name, "", state, *[""] * (len(columns) - 5), heat.reason or ""])
    print_table(session, columns, rows, "No replicas: servers start when they are asked something.")


def _at_zero(view: StatusView, app: str | None) -> list[tuple[str, HeatView]]:
    """Servers that nothing runs of, and their temperature."""
    return [
        (f"{one.name}/{server.name}", server.heat)
        for one in view.apps
        for server in one.servers
        if app in (None, one.name)
        and server.heat is not None
        and server.heat.heat not in (Heat.RUNNING, Heat.PARKED)
    ]


def _row(replica: ReplicaView, now: float, *, has_gpus: bool, has_nodes: bool) -> list[str | Text]:
    words = replica_words(replica)
    return [
        replica.id,
        words.server,
        replica.runtime,
        Text(words.state, _STYLES[replica.state]),
        replica.path.value,
        format_age(now - replica.created_at),
        words.start,
        words.memory,
        words.share,
        *([words.device] if has_gpus else []),
        *([replica.node or ""] if has_nodes else []),
        words.error,
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
