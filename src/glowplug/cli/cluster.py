"""``cluster``: which machines there are, and how another one becomes a node."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli import completion
from glowplug.cli.options import JsonOption, duration, parse_assignments, session_of
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.session import Session
from glowplug.cli.text import format_age, format_seconds
from glowplug.control.messages import NodeStatus, RouterState, RouterStatus
from glowplug.engine import embedded
from glowplug.engine.launch import Beside
from glowplug.engine.record import Role, read_record
from glowplug.engine.status import EngineStatus, read_status
from glowplug.observe.waterfall import format_bytes
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import JoinTokenView, NodeState
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput

JOIN_TOKEN_VARIABLE = "GLOWPLUG_JOIN_TOKEN"  # noqa: S105 - the name of a variable
_POLL_S = 0.5
_STYLES = {
    NodeState.READY: "green",
    NodeState.DRAINING: "yellow",
    NodeState.UNREACHABLE: "red",
    NodeState.LOST: "red",
}


class EngineName(StrEnum):
    """Where machines come from, other than by hand."""

    RAY = "ray"


commands = typer.Typer(help="The machines of a cluster: join, look, drain, remove.", no_args_is_help=True)
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="A node.", autocompletion=completion.nodes)]


@commands.command()
def token(
    context: typer.Context,
    ttl_s: Annotated[
        float, typer.Option("--ttl", parser=duration, metavar="DURATION", help="How long it can be used.")
    ] = 3600.0,
    list_tokens: Annotated[
        bool, typer.Option("--list", help="Make none; list those that can still be used.")
    ] = False,
    revoke: Annotated[
        str | None, typer.Option(metavar="ID", help="Make none; let nobody join with this one any more.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token that machines join with."""
    session = session_of(context)
    with session.client() as client:
        if revoke is not None:
            client.revoke_join_token(revoke)
            session.say(f"Nobody can join with {revoke} any more.")
            return
        if list_tokens:
            _print_tokens(session, client.join_tokens(), as_json=as_json)
            return
        made = client.new_join_token(ttl_s)
    if as_json:
        print_json(session, made)
        return
    session.out.print(made.token, soft_wrap=True, markup=False)
    session.say(f"On another machine, within {format_seconds(ttl_s)}: cluster join ADDRESS --token TOKEN")


@commands.command()
def join(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Argument(help="The control plane, as HOST:PORT or URL. Without: start what joined before."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=JOIN_TOKEN_VARIABLE,
            help="A token of `glowplug cluster token`; with --engine ray of an existing cluster, Ray's own.",
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(help="Become a node of the Ray cluster there; its engine does the rest."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the node is called (default: made of the host name).")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where its gateway listens (0.0.0.0:7443).")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Where the control plane reaches it (default: as it reaches that one)."
        ),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where its router takes requests for any app (127.0.0.1:8080); off: it has none.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What is known of it; zone and rack spread copies."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay here and show the logs; for systemd, containers.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds until agent and gateway must answer.")
    ] = embedded.START_TIMEOUT_S,
) -> None:
    """Make this machine a node of a cluster, and start it."""
    from glowplug.engine import join as joining  # loads cryptography: a tenth of a second

    session = session_of(context)
    if engine is not None:
        from glowplug.cli.cluster_engine import join_ray

        if name or listen or label or (address is None and (token or advertise)):
            raise InvalidInput(
                "Of a Ray node only its address, and its router's, is said when it joins.",
                remedy="cluster join HOST:PORT --engine ray [--token TOKEN] [--advertise HOST] [--serve ..]",
            )
        join_ray(session, address, token, advertise, serve, blocks=foreground)
        return
    if (address is None) != (token is None):
        raise InvalidInput(
            "An address and a token belong together.",
            remedy="Give both to join, or neither to start the node that this machine already is.",
        )
    if address is not None and token is not None:
        wanted = joining.Wanted(
            name,
            listen or joining.DEFAULT_LISTEN,
            advertise,
            parse_assignments(label or []),
            serve or joining.DEFAULT_SERVE,
        )
        record = joining.join(session.state, address, token, wanted)
    elif name or listen or advertise or label:
        raise InvalidInput(
            "What a node is called, where it listens and its labels are said when it joins.",
            remedy="Join again with them, an address and a token.",
        )
    else:
        record = joining.joined(session.state, serve)

    def announce(_address: embedded.Address) -> None:
        session.say(f"This machine is node {record.name} of the cluster at {record.control_url}.")
        if record.serve is not None:
            session.say(f"Its router serves all apps at {record.serve}.")

    where = (session.state, record.listen_host, record.listen_port)
    router = Beside(record.serve) if record.serve else None
    if foreground:
        code = embedded.run_foreground(
            *where, on_ready=announce, role=Role.NODE, beside=router, timeout_s=timeout_s
        )
        raise typer.Exit(code)
    announce(embedded.up(*where, role=Role.NODE, beside=router, timeout_s=timeout_s))


@commands.command()
def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the machines, what they may be used for, and why not."""
    session = session_of(context)
    with session.client() as client:
        nodes = client.nodes()
    if as_json:
        print_json(session, nodes)
        return
    columns = ["NODE", "STATE", "ADDRESS", "REPLICAS", "MEMORY", "GPUS", "ROUTER", "LABELS", "WHY"]
    print_table(session, columns, map(_row, nodes), "No node.")
    record = None if session.url else read_record(session.state)
    if record is not None and record.engine and (engine := read_status(session.state)) is not None:
        _print_engine(session, engine)


@commands.command()
def drain(
    context: typer.Context,
    node: NodeArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Use it again.")] = False,
    wait_s: Annotated[
        float | None,
        typer.Option(
            "--wait", parser=duration, metavar="DURATION", help="Wait at most so long until it is empty."
        ),
    ] = None,
) -> None:
    """Place nothing new on a node, and move what runs there."""
    session = session_of(context)
    with session.client() as client:
        client.drain_node(node, undo=undo)
        session.say(f"Node {node} is used again." if undo else f"Node {node} is being drained.")
        if undo or wait_s is None:
            return
        deadline_s = time.monotonic() + wait_s
        while left := sum(one.replicas for one in client.nodes() if one.name == node):
            if time.monotonic() >= deadline_s:
                raise DeadlineExceeded(
                    f"After {format_seconds(wait_s)} {left} replicas are still on {node}.",
                    remedy="Those that serve stay until another node has room for a successor: glowplug ps.",
                    stage="drain",
                )
            time.sleep(_POLL_S)
    session.say(f"Nothing runs on {node} any more.")


@commands.command()
def remove(
    context: typer.Context,
    node: NodeArgument,
    force: Annotated[bool, typer.Option("--force", help="Give up what runs there.")] = False,
) -> None:
    """Take a node out of the cluster."""
    session = session_of(context)
    with session.client() as client:
        client.remove_node(node, force=force)
    session.say(f"Node {node} was removed. On that machine, `glowplug down` stops what is left.")


def _print_tokens(session: Session, tokens: list[JoinTokenView], *, as_json: bool) -> None:
    if as_json:
        print_json(session, tokens)
        return
    now = SystemClock().wall()
    rows = [
        [one.id, format_age(now - one.created_at), format_seconds(one.expires_at - now)] for one in tokens
    ]
    print_table(session, ["TOKEN", "AGE", "LEFT"], rows, "No token can be used.")


def _print_engine(session: Session, engine: EngineStatus) -> None:
    """What the engine says of machines that do nothing for us, or why it says nothing."""
    if engine.error is not None:
        reason = GlowplugError.from_dict(engine.error)
        session.say(f"{engine.engine.capitalize()} at {engine.address}: {reason}")
    elif engine.missing:
        session.out.print()
        rows: list[Row] = [[one.id[:12], one.node, one.state.value, one.why] for one in engine.missing]
        print_table(session, [f"MACHINE OF {engine.engine.upper()}", "NODE", "STATE", "WHY"], rows, "")


def _router(router: RouterStatus | None) -> str:
    """Where it serves, and how old its table is when it is not told of every change."""
    if router is None or router.state is RouterState.ABSENT:
        return ""
    if router.state is RouterState.FOLLOWING:
        return router.address or ""
    age = "never heard of" if router.table_age_s is None else f"silent for {format_age(router.table_age_s)}"
    return f"{router.address} ({age})" if router.address else f"({age})"


def _row(node: NodeStatus) -> Row:
    view = node.view
    return [
        node.name,
        Text(node.state.value, _STYLES[node.state]),
        node.address or "(here)",
        str(node.replicas),
        f"{format_bytes(view.memory_used_bytes)} of {format_bytes(view.memory_bytes)}" if view else "",
        f"{view.gpus_used} of {len(view.gpus)}" if view else "",
        _router(node.router),
        " ".join(f"{name}={value}" for name, value in sorted(node.labels.items())),
        node.why,
    ]
