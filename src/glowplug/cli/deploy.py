"""``deploy``, ``stop`` and ``rollback``: which version of an app is there."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from glowplug.cli.client import ApiClient
from glowplug.cli.options import AppArgument, JsonOption, OptionalAppArgument, TargetArgument, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.cli.targets import ServerTarget
from glowplug.cli.text import format_age
from glowplug.control.messages import DeploymentView
from glowplug.sdk.app import App
from glowplug.sdk.loader import load_app
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.ids import check_name


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(deploy)
    app.command("deployments")(list_deployments)
    app.command()(stop)
    app.command()(rollback)


def deploy(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE[:APP]", help="The app file, and which of its apps.")],
    name: Annotated[str | None, typer.Option(help="Deploy under another name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build what the app needs, register it as a new version, and print its addresses."""
    session = session_of(context)
    app = load_app_at(file)
    with session.client() as client:
        spec, deployment = deploy_app(session, client, app, name)
        if as_json:
            print_json(session, deployment)
        else:
            print_deployment(session, client.url, spec, deployment)


def load_app_at(location: str) -> App:
    """The app at ``FILE`` or ``FILE:APP``. Raises InvalidInput."""
    path, colon, app_name = location.rpartition(":")
    if colon and not Path(location).exists():
        return load_app(Path(path), app_name)
    return load_app(Path(location))


def deploy_app(
    session: Session, client: ApiClient, app: App, name: str | None = None
) -> tuple[dict[str, Any], DeploymentView]:
    """Deploy with progress; the specification and the new deployment. Leaving early cancels it."""
    spec, secrets = app.to_spec()
    for server, applied in app.recipes().items():
        session.say(f"{server}: {applied}", style="bright_black")
    if name is not None:
        spec["name"] = check_name(name, "App")
    with (
        shown_progress(session, f"Deploying {spec['name']}") as report,
        closing(client.deploy(spec, secrets)) as events,
    ):
        for event in events:
            report(event.text, event.fraction)
            if event.error is not None:
                raise GlowplugError.from_dict(event.error.model_dump())
            if event.deployment is not None:
                return spec, event.deployment
    raise Unavailable(
        "The control plane stopped reporting before the deployment was finished.",
        remedy="See `glowplug deployments`, then deploy again.",
        app=spec["name"],
    )


def print_deployment(session: Session, url: str, spec: dict[str, Any], deployment: DeploymentView) -> None:
    """The addresses of a deployment, and something to paste."""
    session.say(f"Deployed {deployment.app} as version {deployment.version}.")
    rows = [[name, f"{url}{path}"] for name, path in deployment.urls.items()]
    print_table(session, ["SERVER", "ADDRESS"], rows, "It has no servers.")
    for server in spec["servers"]:
        path = deployment.urls.get(server["name"])
        if path is not None:
            session.say(f"Try: {example_request(f'{url}{path}', server)}", style="bright_black")


def example_request(address: str, server: dict[str, Any]) -> str:
    """A curl line for a server: its canary or warm-up request when it has one, else its ready path."""
    snapshot = server.get("snapshot") or {}
    known = [*(snapshot.get("canary") or []), *(snapshot.get("warmup") or [])]
    call = known[0] if known else (server.get("ready") or {"path": "/"})
    words = ["curl", f"{address.rstrip('/')}{call['path']}"]
    if call.get("json_body") is not None:
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(call["json_body"])]
    elif call.get("method", "GET") != "GET":
        words += ["-X", call["method"]]
    return shlex.join(words)


def list_deployments(
    context: typer.Context, app: OptionalAppArgument = None, as_json: JsonOption = False
) -> None:
    """List the versions of apps, newest first; one of each is active."""
    session = session_of(context)
    with session.client() as client:
        views = client.deployments(app)
    if as_json:
        print_json(session, views)
        return
    now = SystemClock().wall()
    rows = [
        [
            view.app, f"v{view.version}", "active" if view.active else "", format_age(now - view.created_at),
            ", ".join(view.servers), view.error.message if view.error else "",
        ]
        for view in views
    ]  # fmt: skip
    print_table(session, ["APP", "VERSION", "", "AGE", "SERVERS", "ERROR"], rows, "Nothing is deployed.")


def stop(
    context: typer.Context,
    target: TargetArgument,
    remove: Annotated[bool, typer.Option("--remove", help="Undeploy the app, too.")] = False,
) -> None:
    """Stop a replica, or all replicas of an app or server; the next request wakes it, unless removed."""
    session = session_of(context)
    with session.client() as client:
        if not remove and any(replica.id == target for replica in client.replicas()):
            client.stop_replica(target)
            session.say(f"Stopping replica {target}.")
            return
        server = ServerTarget.parse(target)
        result = client.stop_app(server.app, server.server, remove=remove)
    stopped = (
        f"Stopping {len(result.replicas)} replica{'' if len(result.replicas) == 1 else 's'} of {target}."
    )
    session.say(f"{stopped} It is no longer deployed." if result.is_removed else stopped)


def rollback(
    context: typer.Context,
    app: AppArgument,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, metavar="VERSION", help="Which version (default: the one before)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an older version of an app the active one."""
    session = session_of(context)
    with session.client() as client:
        deployment = client.rollback(app, to)
    if as_json:
        print_json(session, deployment)
    else:
        session.say(f"Version {deployment.version} of {deployment.app} is active.")
