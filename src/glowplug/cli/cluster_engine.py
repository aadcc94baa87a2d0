"""``cluster up`` and ``down``: a cluster whose machines come from an engine that people run already."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from glowplug.cli.cluster import JOIN_TOKEN_VARIABLE, EngineName, commands
from glowplug.cli.options import parse_assignments, session_of
from glowplug.cli.session import Session
from glowplug.engine import embedded
from glowplug.engine.ray import head, settings
from glowplug.engine.ray import up as on_ray
from glowplug.types.errors import InvalidInput, Unavailable
from glowplug.types.paths import DEFAULT_STATE_DIR

_RAY_START_S = 120.0


@commands.command()
def up(
    context: typer.Context,
    engine: Annotated[EngineName, typer.Option(help="Where machines come from.")],
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="An existing Ray cluster with a node on this machine; `auto` finds it. Without: a new one.",
        ),
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST", help="Where other machines reach this one.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (default: 8080); 0 takes a free one.")
    ] = None,
    ray_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of a new Ray cluster.")
    ] = settings.DEFAULT_RAY_PORT,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Use only Ray nodes with this label (default: all)."),
    ] = None,
    node_state: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="State directory of the machines' agents; {node} in it becomes the node's name.",
        ),
    ] = str(DEFAULT_STATE_DIR),
    gateway_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the machines' gateways; 0 takes a free one.")
    ] = settings.DEFAULT_GATEWAY_PORT,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the machines' routers take requests for any app (127.0.0.1:8080); off: none.",
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay here and show the logs; for systemd, containers.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds until everything must answer.")
    ] = on_ray.START_TIMEOUT_S,
) -> None:
    """Start the control plane here, and an agent on every machine of a Ray cluster."""
    from glowplug.engine.join import router_address  # loads cryptography: a tenth of a second

    session = session_of(context)
    router_address(serve)
    if not Path(node_state).is_absolute():
        raise InvalidInput(f"{node_state!r} is not absolute.", remedy="Write --node-state /var/lib/..")
    if address is None and advertise is None:
        raise InvalidInput(
            "A new Ray cluster needs an address of this machine that the others reach.",
            remedy="Give it with --advertise, or an existing cluster's with --address.",
        )
    if address not in (None, "auto"):
        head.split_address(str(address))
    try:
        wanted = settings.RaySettings(
            address=address or f"{advertise}:{ray_port}",
            starts_head=address is None,
            advertise=advertise,
            only=parse_assignments(only or []),
            node_state=node_state,
            gateway_port=gateway_port,
            serve=serve,
        )
    except ValidationError as error:
        raise InvalidInput(
            f"Labels cannot be {', '.join(only or [])}.",
            remedy="They are NAME=VALUE of letters, digits, and . _ - inside.",
        ) from error
    if foreground:
        on_ray.prepare(session.state, wanted)
        code = embedded.run_foreground(
            session.state,
            host,
            port,
            on_ready=lambda where: _announce(session, where, wanted),
            timeout_s=timeout_s,
            commands=on_ray.commands(wanted),
        )
        raise typer.Exit(code)
    where, told = on_ray.up(session.state, wanted, host, port, timeout_s)
    _announce(session, where, wanted)
    session.say(f"Ray has {len(told.machines)} machines: glowplug cluster status")


@commands.command()
def down(
    context: typer.Context,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds until everything must have ended.")
    ] = on_ray.STOP_TIMEOUT_S,
) -> None:
    """Stop the control plane, every agent, and Ray where it was started by `cluster up`."""
    session = session_of(context)
    did_run, left = on_ray.down(session.state, timeout_s)
    if left:
        raise Unavailable(
            "Some agents were not ended: " + "; ".join(f"{name}: {why}" for name, why in left.items()),
            remedy="`glowplug down` on those machines ends them.",
        )
    session.say("Stopped." if did_run else "Nothing was running.")


def join_ray(
    session: Session,
    address: str | None,
    token: str | None,
    advertise: str | None,
    serve: str | None,
    *,
    blocks: bool,
) -> None:
    """Make this machine a node of a Ray cluster; its agent is the engine's business.

    With a join token ``address`` is the control plane's, else it is Ray's own, and the token, too. Without an
    address the machine is again of the cluster that it joined with a join token.
    """
    from glowplug.engine.join import router_address
    from glowplug.engine.ray.base import join_base
    from glowplug.identity.engine_join import read_base
    from glowplug.identity.tokens import PREFIX

    head.check_installed()
    router_address(serve)
    files = session.state.identity.engine
    if address is not None and not (token or "").startswith(PREFIX):
        command = head.join_command(address, advertise, blocks=blocks)
        told = settings.joining_environment(token, serve)
    else:
        if address is not None:
            base = join_base(session.state, address, token or "", advertise)
        else:
            base = read_base(files)
        address = base.address
        command = head.join_command(address, base.host, blocks=blocks)
        told = settings.base_environment(files, base.token, serve)
    # Ray hands all of it on to every worker: whatever runs in one could join with the token.
    own = {name: value for name, value in os.environ.items() if name != JOIN_TOKEN_VARIABLE}
    environment = own | told
    if blocks:
        os.execve(command[0], command, environment)  # noqa: S606 - what it becomes is spelled out
    remedy = "Is Ray's head at that address, and has it been started anew since this machine joined?"
    with tempfile.TemporaryFile("w+") as said:  # no pipe: what `ray start` leaves running would hold it open
        try:
            done = subprocess.run(
                command, env=environment, stdout=said, stderr=said, timeout=_RAY_START_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"`ray start` did not end within {_RAY_START_S:g} s.", remedy=remedy) from error
        if done.returncode != 0:
            said.seek(0)
            raise Unavailable(f"`ray start` failed: {said.read().strip()[-1000:]}", remedy=remedy)
    session.say(f"This machine is a node of the Ray cluster at {address}; `ray stop` ends that.")


def _announce(session: Session, where: embedded.Address, wanted: settings.RaySettings) -> None:
    session.out.print(
        f"Glowplug answers at {where.url} (state: {session.state.root})", soft_wrap=True, markup=False
    )
    if wanted.starts_head:
        session.say(f"Ray's head is at {wanted.address}; `glowplug cluster token` makes tokens to join with.")
        here = f"{wanted.advertise}:{where.port}"
        session.say(f"On another machine: glowplug cluster join {here} --engine ray --token TOKEN")
