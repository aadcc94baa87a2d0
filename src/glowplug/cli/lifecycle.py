"""``up``, ``down`` and ``status``: whether Glowplug runs on this machine at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from glowplug.chunks.remote_settings import RemoteSettings
from glowplug.cli.options import JsonOption, duration, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.session import Session
from glowplug.cli.text import format_age, heat_words
from glowplug.control.database_url import check_shown_url
from glowplug.control.messages import LeadershipView, NodeStatus, Role, StatusView
from glowplug.engine import embedded
from glowplug.engine.launch import Beside
from glowplug.node.snapshot_search import VARIABLE as WAIT_VARIABLE
from glowplug.node.snapshot_search import wait_from_environment
from glowplug.observe.waterfall import format_bytes
from glowplug.snapshot.expiry import VARIABLE as TTL_VARIABLE
from glowplug.snapshot.expiry import ttl_from_environment
from glowplug.snapshot.per_server import KEPT
from glowplug.snapshot.per_server import VARIABLE as KEPT_VARIABLE
from glowplug.snapshot.sealing.keys import FILE_VARIABLE, KeyRing
from glowplug.snapshot.sharing import Sharing
from glowplug.types.cluster import NodeState
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import DATABASE_URL_VARIABLE


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default: 127.0.0.1); 0.0.0.0 needs the token.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (default: 8080); 0 takes a free one.")
    ] = None,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", "-f", help="Stay here and show the logs; for systemd and containers."),
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds until everything must answer.")
    ] = embedded.START_TIMEOUT_S,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A PostgreSQL that several control planes share, of which one leads: "
            "postgresql://USER@HOST/NAME. By default SQLite in the state directory.",
        ),
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Make this machine a node, too: another control plane of the database, and routers "
            "on nodes, reach its replicas there.",
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Where others reach the gateway (default: where it listens)."),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What this machine is called as a node (default: its host name)."),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where images are pushed to and pulled from: s3://.., gs://.., a folder ..",
            envvar="GLOWPLUG_REGION",
        ),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            metavar="URL,..", help="Cache servers near this machine, asked first.", envvar="GLOWPLUG_ZONE"
        ),
    ] = None,
    ssd_bytes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Room for image content on this machine (default: no limit).",
            envvar="GLOWPLUG_SSD_BYTES",
        ),
    ] = None,
    share_snapshots: Annotated[
        Sharing | None,
        typer.Option(
            help="Restore servers from the region's snapshots (pull, the default), and bring new ones there.",
            envvar="GLOWPLUG_SHARE_SNAPSHOTS",
        ),
    ] = None,
    snapshot_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keys that snapshots are encrypted with (`glowplug snapshot keygen`), mode 0600.",
            envvar="GLOWPLUG_SNAPSHOT_KEYS_FILE",
        ),
    ] = None,
    snapshot_ttl_s: Annotated[
        float | None,
        typer.Option(
            "--snapshot-ttl",
            parser=duration,
            metavar="DURATION",
            help="Remove snapshots that nobody used for so long: 12h, 30d, .. (default: never).",
            envvar=TTL_VARIABLE,
        ),
    ] = None,
    snapshots_per_server: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Keep so many snapshots of each server, the latest used (default: {KEPT}).",
            envvar=KEPT_VARIABLE,
        ),
    ] = None,
    region_wait_s: Annotated[
        float | None,
        typer.Option(
            "--region-wait",
            parser=duration,
            metavar="DURATION",
            help="How long a start waits for the region to say what snapshot it has (default: 2s).",
            envvar=WAIT_VARIABLE,
        ),
    ] = None,
) -> None:
    """Start Glowplug on this machine, unless it runs already, and wait until it answers."""
    session = session_of(context)
    beside = _own_node(gateway, advertise, node)
    # Control finds the first in its environment; the agent, its tasks and the blob daemon the others.
    settings = {
        DATABASE_URL_VARIABLE: None if database is None else check_shown_url(database),
        "GLOWPLUG_REGION": region,
        "GLOWPLUG_ZONE": zone,
        "GLOWPLUG_SSD_BYTES": ssd_bytes,
        "GLOWPLUG_SHARE_SNAPSHOTS": share_snapshots,
        TTL_VARIABLE: snapshot_ttl_s,
        KEPT_VARIABLE: snapshots_per_server,
        WAIT_VARIABLE: region_wait_s,
        FILE_VARIABLE: None if snapshot_keys is None else snapshot_keys.absolute(),
    }
    os.environ |= {name: str(value) for name, value in settings.items() if value is not None}
    RemoteSettings.from_environment()  # what is wrong with them is said here, not in the agent's log
    KeyRing.from_environment()
    ttl_from_environment()
    wait_from_environment()

    def announce(address: embedded.Address) -> None:
        text = f"Glowplug answers at {address.url} (state: {session.state.root})"
        session.out.print(text, soft_wrap=True, markup=False)
        session.say("Next: glowplug deploy app.py, or glowplug run -- COMMAND", style="bright_black")

    if foreground:
        code = embedded.run_foreground(
            session.state, host, port, on_ready=announce, beside=beside, timeout_s=timeout_s
        )
        raise typer.Exit(code)
    announce(embedded.up(session.state, host, port, beside=beside, timeout_s=timeout_s))


def _own_node(gateway: str | None, advertise: str | None, node: str | None) -> Beside | None:
    if gateway is None:
        if advertise or node:
            raise InvalidInput(
                "Only a machine with a gateway is a node, and called or reached as one.",
                remedy="Give --gateway HOST:PORT, too.",
            )
        return None
    from glowplug.engine import join as joining  # loads cryptography: a tenth of a second

    return joining.own_node(gateway, advertise, node)


def down(
    context: typer.Context,
    keep_replicas: Annotated[
        bool, typer.Option("--keep-replicas", help="Leave replicas running; the next `up` adopts them.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds until everything must have ended.")
    ] = embedded.STOP_TIMEOUT_S,
) -> None:
    """Stop Glowplug and every replica, and check that nothing is left."""
    session = session_of(context)
    did_run = embedded.down(session.state, timeout_s=timeout_s, keep_replicas=keep_replicas)
    session.say("Stopped." if did_run else "Nothing was running.")


def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show the nodes, the apps and what each server is doing."""
    session = session_of(context)
    with session.client() as client:
        view = client.status(heat=True)
        if as_json:
            print_json(session, view)
        else:
            _print_status(session, client.url, view)


def _print_status(session: Session, url: str, view: StatusView) -> None:
    session.out.print(
        Text(f"Glowplug {view.version} at {url}, up for {format_age(view.uptime_s)}\n"), soft_wrap=True
    )
    if view.leadership is not None and view.leadership.is_shared:
        session.out.print(_leadership(view.leadership), soft_wrap=True)
        if not view.leadership.role.serves:
            return
        session.out.print()
    print_table(
        session,
        ["NODE", "AGENT", "CPUS", "MEMORY", "GPUS", "RUNTIME"],
        map(_node_row, view.nodes),
        "No node.",
    )
    session.out.print()
    servers: list[Row] = [
        [
            f"{app.name}/{server.name}", f"v{app.version}", str(server.ready), str(server.starting),
            str(server.desired), str(server.in_flight), str(server.held), heat_words(server.heat), server.url,
            Text(server.error.message, "red") if server.error else "",
        ]
        for app in view.apps
        for server in app.servers
    ]  # fmt: skip
    columns = [
        "SERVER", "VERSION", "READY", "STARTING", "WANTED", "IN FLIGHT", "HELD", "HEAT", "PATH", "ERROR",
    ]  # fmt: skip
    print_table(session, columns, servers, "No app is deployed: glowplug deploy app.py")


def _leadership(view: LeadershipView) -> Text:
    match view.role:
        case Role.LEADER:
            return Text(f"It leads, term {view.term}.", "green")
        case Role.CUT_OFF:
            return Text(
                f"It led term {view.term}; its database does not say who leads now. Ready replicas serve on.",
                "red",
            )
        case _:
            return Text(f"It stands by; {view.leader or 'nobody'} leads, term {view.term}.", "yellow")


def _node_row(node: NodeStatus) -> Row:
    known = node.view
    state = Text("reachable", "green") if node.is_reachable else Text("unreachable", "red")
    if node.state in (NodeState.DRAINING, NodeState.LOST):
        state = Text(node.state.value, "yellow" if node.is_reachable else "red")
    if known is None:
        return [node.name, state, "", "", "", ""]
    if known.quarantine is not None:
        state = Text("no restores: " + known.quarantine, "yellow")
    return [
        node.name,
        state,
        f"{known.cpus_used:g} of {known.cpus:g}",
        f"{format_bytes(known.memory_used_bytes)} of {format_bytes(known.memory_bytes)}",
        f"{known.gpus_used} of {len(known.gpus)}",
        known.runtime,
    ]
