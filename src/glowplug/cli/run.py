"""``run -- COMMAND``: a server from a bare command, removed again when the user has seen enough."""

from __future__ import annotations

import codecs
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from glowplug.cli.client import ApiClient
from glowplug.cli.completion import image_names
from glowplug.cli.deploy import deploy_app, print_deployment
from glowplug.cli.options import parse_assignments, session_of
from glowplug.cli.session import Session
from glowplug.cli.targets import ServerTarget
from glowplug.sdk.app import App
from glowplug.sdk.command import in_current_folder
from glowplug.sdk.image import Image
from glowplug.sdk.loader import server_from_command
from glowplug.sdk.options import RUNTIMES
from glowplug.sdk.recipe_choice import AUTO, NONE
from glowplug.sdk.recipe_table import known_recipes
from glowplug.sdk.snapshot import Snapshot
from glowplug.sdk.volume import Volume
from glowplug.types.errors import NotFound, Unavailable
from glowplug.types.replica import Purpose, ReplicaView

_LOOK_EVERY_S = 1.0
_PANEL = "Where and how it runs"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(context_settings={"allow_interspersed_args": False})(run)


def run(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run.")],
    name: Annotated[str | None, typer.Option(help="Name of the app (guessed from it).")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where the command listens (guessed, else 8000).")
    ] = None,
    ready: Annotated[str | None, typer.Option(help="Path that answers once it is ready (guessed).")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment; repeatable.")
    ] = None,
    no_snapshot: Annotated[bool, typer.Option("--no-snapshot", help="Never capture its memory.")] = False,
    gpu_snapshot: Annotated[
        bool,
        typer.Option(
            "--gpu-snapshot",
            help="Capture and park the memory of its GPUs too; with --gpu and --runtime runc (docs/gpu.md).",
        ),
    ] = False,
    recipe: Annotated[
        str,
        typer.Option(
            help="How to serve its engine (`glowplug recipes`): auto, none or a name.",
            autocompletion=lambda: [AUTO, NONE, *(known.name for known in known_recipes())],
        ),
    ] = AUTO,
    warmup: Annotated[
        list[str] | None,
        typer.Option(metavar="REQUEST", help="Before a capture, such as 'GET /'; repeatable."),
    ] = None,
    canary: Annotated[
        list[str] | None,
        typer.Option(metavar="REQUEST", help="A copy must answer it alike; repeatable."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it deployed and return.")] = False,
    venv: Annotated[
        Path | None, typer.Option(help="Run in this virtual environment.", rich_help_panel=_PANEL)
    ] = None,
    image_dir: Annotated[
        Path | None, typer.Option(help="Run in this root filesystem.", rich_help_panel=_PANEL)
    ] = None,
    image_name: Annotated[
        str | None,
        typer.Option(
            "--image", help="Run in this imported image.", autocompletion=image_names, rich_help_panel=_PANEL
        ),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:INSIDE[:ro]", help="Show a folder; repeatable.", rich_help_panel=_PANEL),
    ] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs (default: 1).", rich_help_panel=_PANEL)] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory, such as 6GiB (default: 4GiB).", rich_help_panel=_PANEL)
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU, such as H100 or H100:2.", rich_help_panel=_PANEL)
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="runsc (gVisor) or runc (the host's kernel; for code you trust). Default: runsc.",
            autocompletion=lambda: list(RUNTIMES),
            rich_help_panel=_PANEL,
        ),
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option(help="Always keep so many (default: 0).", rich_help_panel=_PANEL)
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Never more than (default: 4).", rich_help_panel=_PANEL)
    ] = None,
    scaledown_window_s: Annotated[
        float | None,
        typer.Option(
            "--scaledown-window",
            help="Idle seconds before it is parked (default: 60).",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    parked_window_s: Annotated[
        float | None,
        typer.Option(
            "--parked-window",
            help="Seconds that it stays parked before it stops; 0: not at all (default: 300).",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    startup_timeout_s: Annotated[
        float | None,
        typer.Option(
            "--startup-timeout",
            help="Seconds it may take to get ready (default: 600).",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> None:
    """Serve a command that listens on a port; Ctrl-C stops and removes it. No Python file needed.

    It runs in the current folder, which it sees read-only (unless --image or --image-dir says otherwise).
    """
    session = session_of(context)
    if sum(choice is not None for choice in (venv, image_dir, image_name)) > 1:
        raise typer.BadParameter("--venv, --image and --image-dir exclude each other.")
    image = Image.from_directory(image_dir) if image_dir else None
    if image_name is not None:
        image = Image.from_name(image_name)
    if venv is not None:
        image = in_current_folder(Image.host_python(venv))
    options: dict[str, Any] = {
        "cpus": cpus,
        "memory": memory,
        "gpu": gpu,
        "runtime": runtime,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "scaledown_window_s": scaledown_window_s,
        "parked_window_s": parked_window_s,
        "startup_timeout_s": startup_timeout_s,
        "volumes": parse_volumes(volume or []) or None,
    }
    app = server_from_command(
        command,
        app_name=name,
        port=port,
        ready=ready,
        image=image,
        env=parse_assignments(env or []),
        snapshot=Snapshot(not no_snapshot, gpu=gpu_snapshot, warmup=warmup or [], canary=canary or []),
        recipe=recipe,
        **{key: value for key, value in options.items() if value is not None},
    )
    with session.client() as client:
        if detach:
            spec, deployment = deploy_app(session, client, app)
            print_deployment(session, client.url, spec, deployment)
        else:
            _run_attached(session, client, app)


def parse_volumes(words: list[str]) -> dict[str, Volume]:
    """``HOST:INSIDE`` or ``HOST:INSIDE:ro``. Raises typer.BadParameter."""
    volumes = {}
    for word in words:
        parts = word.split(":")
        if len(parts) not in (2, 3) or parts[2:] not in ([], ["ro"], ["rw"]) or not all(parts[:2]):
            raise typer.BadParameter(f"{word!r} is not HOST:INSIDE or HOST:INSIDE:ro.")
        volumes[parts[1]] = Volume(parts[0], read_only=parts[2:] == ["ro"])
    return volumes


def _run_attached(session: Session, client: ApiClient, app: App) -> None:
    before = {view.id for view in client.deployments(app.name)}
    with _ended_by_signals():
        try:
            spec, deployment = deploy_app(session, client, app)
            print_deployment(session, client.url, spec, deployment)
            session.say("It starts at the first request. Ctrl-C stops and removes it.", style="bright_black")
            follow_app(session, client, ServerTarget(deployment.app))
        finally:
            _remove(session, client, app.name, before)


def _remove(session: Session, client: ApiClient, app_name: str, before: set[str]) -> None:
    """Undeploy what we deployed; an app that others had deployed before goes back to their version."""
    after = client.deployments(app_name)
    if all(view.id in before for view in after):
        return  # cancelled or refused before anything was registered
    previous = next((view for view in after if view.id in before), None)
    if previous is not None:
        client.rollback(app_name, previous.version)
        session.say(f"Version {previous.version} of {app_name} is active again.")
        return
    client.stop_app(app_name, None, remove=True)
    session.say(f"Stopped and removed {app_name}.")


def follow_app(session: Session, client: ApiClient, target: ServerTarget) -> None:
    """Copy the logs of whichever replica serves, one after the other, for ever: the user ends it."""
    shown: set[str] = set()
    while True:
        replica = _next_to_show(client, target, shown)
        if replica is None:
            time.sleep(_LOOK_EVERY_S)
            continue
        shown.add(replica.id)
        session.say(f"--- {replica.id} ({replica.path.value})", style="bright_black")
        try:
            copy_log(session, client, replica.id, tail=None, follow=True)
        except (Unavailable, NotFound) as error:
            session.say(f"--- log of {replica.id} ends: {error.message}", style="bright_black")


def _next_to_show(client: ApiClient, target: ServerTarget, shown: set[str]) -> ReplicaView | None:
    try:
        replicas = client.replicas()
    except Unavailable:
        return None  # the control plane restarts: replicas do not mind, and we look again
    waiting = [
        replica
        for replica in replicas
        if target.matches(replica) and replica.purpose is Purpose.SERVE and replica.id not in shown
    ]
    return min(waiting, key=lambda replica: replica.created_at, default=None)


def copy_log(session: Session, client: ApiClient, replica_id: str, *, tail: int | None, follow: bool) -> None:
    """Write a replica's log to stdout as it is: bytes of the user's own server."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with client.logs(replica_id, tail=tail, follow=follow) as chunks:
        for chunk in chunks:
            session.out.file.write(decoder.decode(chunk))
            session.out.file.flush()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end an attached run like Ctrl-C does: with a clean-up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
