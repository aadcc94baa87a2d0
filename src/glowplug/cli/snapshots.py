"""``snapshot ls|show|verify|create|push|pull|rm|gc|reseal|keygen``: captured memories to restore from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from glowplug.cli.client import ApiClient
from glowplug.cli.images import outcome
from glowplug.cli.options import (
    JsonOption,
    OptionalAppArgument,
    ServerArgument,
    SnapshotArgument,
    SnapshotsArgument,
    session_of,
)
from glowplug.cli.output import Row, print_json, print_table
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.cli.targets import ServerTarget
from glowplug.cli.text import format_age, format_seconds
from glowplug.observe.waterfall import format_bytes, printable
from glowplug.snapshot.sealing.keys import make_key_file, rotate_key_file
from glowplug.types.clock import SystemClock
from glowplug.types.errors import DeadlineExceeded, InvalidInput, NotFound, SnapshotInvalid
from glowplug.types.key_fields import KEY_FIELD_WORDS
from glowplug.types.replica import SnapshotGpu, SnapshotStatus, SnapshotView

_LOOK_EVERY_S = 0.5
_SHOWN_CHARACTERS = 200
_STYLES = {
    SnapshotStatus.CAPTURING: "yellow",
    SnapshotStatus.GOOD: "green",
    SnapshotStatus.QUARANTINED: "red",
    SnapshotStatus.OPTED_OUT: "bright_black",
    SnapshotStatus.LOCKED: "red",
}

commands = typer.Typer(help="Captured memories: list, inspect, verify, create, remove.", no_args_is_help=True)


@commands.command("ls")
def list_snapshots(
    context: typer.Context,
    app: OptionalAppArgument = None,
    region: Annotated[bool, typer.Option("--region", help="Those of the region instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List snapshots."""
    session = session_of(context)
    with session.client() as client:
        views = [view for view in client.snapshots(region=region) if app is None or view.is_of(app)]
    if as_json:
        print_json(session, views)
        return
    now = SystemClock().wall()
    rows: list[Row] = [
        [
            view.id, ", ".join(view.servers), Text(view.status.value, _STYLES[view.status]),
            format_bytes(view.bytes), format_bytes(view.here_bytes), "yes" if view.is_in_region else "",
            format_age(now - view.created_at),
            format_seconds(view.capture_s) if view.capture_s is not None else "",
            str(view.restores), str(view.failures), view.reason or "",
        ]
        for view in views
    ]  # fmt: skip
    columns = [
        "SNAPSHOT", "SERVER", "STATUS", "SIZE", "HERE", "REGION", "AGE", "CAPTURE", "RESTORES", "FAILURES",
        "REASON",
    ]  # fmt: skip
    print_table(session, columns, rows, "No snapshots: one is captured after a server's first cold start.")


@commands.command()
def show(context: typer.Context, snapshot: SnapshotArgument, as_json: JsonOption = False) -> None:
    """Show one snapshot and everything its key says must match."""
    session = session_of(context)
    with session.client() as client:
        view = client.snapshot(snapshot)
    _print_one(session, view, as_json)


@commands.command()
def verify(context: typer.Context, snapshot: SnapshotArgument, as_json: JsonOption = False) -> None:
    """Read a snapshot again and compare every hash; exit code 1 when it is not good."""
    session = session_of(context)
    with session.client() as client, shown_progress(session, f"Verifying {snapshot}") as report:
        report("hashing every file", None)
        view = client.verify_snapshot(snapshot)
    if view.status is not SnapshotStatus.GOOD:
        raise SnapshotInvalid(
            f"Snapshot {view.id} is {view.status.value}: {view.reason or 'no reason given'}.",
            remedy=f"Remove it (glowplug snapshot rm {view.id}); the next cold start captures a new one.",
            snapshot=view.id,
        )
    if as_json:
        print_json(session, view)
    else:
        session.say(f"Snapshot {view.id} is good ({format_bytes(view.bytes)}).")


@commands.command()
def create(
    context: typer.Context,
    target: ServerArgument,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds the capture may take.")
    ] = 1800.0,
    as_json: JsonOption = False,
) -> None:
    """Capture a server's memory now, and wait until the snapshot is good."""
    session = session_of(context)
    with session.client() as client:
        server = _one_server(client, ServerTarget.parse(target))
        view = client.create_snapshot(server.app, server.server or "")
        view = _await_capture(session, client, view, timeout_s)
    if as_json:
        print_json(session, view)
    else:
        session.say(f"Captured {view.id} ({format_bytes(view.bytes)}).")


@commands.command()
def push(context: typer.Context, snapshot: SnapshotArgument, as_json: JsonOption = False) -> None:
    """Bring a snapshot to the region; content that is there already is not sent again."""
    session = session_of(context)
    with session.client() as client, shown_progress(session, f"Pushing {snapshot}") as report:
        result = outcome(client.push_snapshot(snapshot), report)
    if as_json:
        print_json(session, result)
    else:
        session.say(f"Pushed {snapshot}: {format_bytes(result['sent_bytes'])} sent.")


@commands.command()
def pull(
    context: typer.Context,
    snapshot: SnapshotArgument,
    content: Annotated[
        bool, typer.Option("--content", help="Fetch all of its memory now, not when it is restored.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a snapshot of the region known to this node; a server with the same key restores it."""
    session = session_of(context)
    with session.client() as client, shown_progress(session, f"Pulling {snapshot}") as report:
        result = outcome(client.pull_snapshot(snapshot, content=content), report)
    if as_json:
        print_json(session, result)
    else:
        session.say(f"Pulled {snapshot}: {format_bytes(result['bytes'])} fetched.")


@commands.command()
def gc(
    context: typer.Context,
    region: Annotated[
        bool, typer.Option("--region", help="Must be given: nodes collect their own garbage by themselves.")
    ] = False,
    grace_s: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds that something must have been unneeded for.")
    ] = 24 * 3600.0,
    as_json: JsonOption = False,
) -> None:
    """Remove from the region the content that no snapshot there refers to any more."""
    if not region:
        raise InvalidInput(
            "Nodes collect their own garbage by themselves.",
            remedy="For the region's: glowplug snapshot gc --region.",
        )
    session = session_of(context)
    with session.client() as client, shown_progress(session, "Collecting garbage") as report:
        result = outcome(client.collect_snapshots(grace_s=grace_s), report)
    if as_json:
        print_json(session, result)
    else:
        session.say(f"Removed the content of {result['removed']} snapshots; {result['waiting']} wait.")


@commands.command("rm")
def remove(
    context: typer.Context,
    snapshots: SnapshotsArgument,
    region: Annotated[
        bool, typer.Option("--region", help="From the region instead: no other node finds them any more.")
    ] = False,
) -> None:
    """Remove snapshots; the next cold start captures a new one."""
    session = session_of(context)
    with session.client() as client:
        for snapshot_id in snapshots:
            client.remove_snapshot(snapshot_id, region=region)
            session.say(f"Removed {snapshot_id}.")


@commands.command()
def reseal(context: typer.Context, as_json: JsonOption = False) -> None:
    """Seal every snapshot with the nodes' first key, here and in the region; run it again to go on."""
    session = session_of(context)
    with session.client() as client, shown_progress(session, "Sealing") as report:
        result = outcome(client.reseal_snapshots(), report)
    if as_json:
        print_json(session, result)
    else:
        session.say(f"Sealed anew: {len(result['resealed'])} here, {len(result['region'])} in the region.")
        for left in result["left"]:
            session.say(f"Left as it is: {left['id']}: {left['reason']}", style="yellow")
    if result["left"]:
        raise typer.Exit(1)


@commands.command()
def keygen(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The key file of `glowplug up --snapshot-keys`.")],
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Put a new key before those that the file has.")
    ] = False,
) -> None:
    """Make a key that snapshots are encrypted with, in a new file that only you can read."""
    session = session_of(context)
    try:
        key = rotate_key_file(file) if rotate else make_key_file(file)
    except OSError as error:
        raise InvalidInput(
            f"{file} cannot be written: {error.strerror}.", remedy="Name a file in a folder of yours."
        ) from error
    session.say(f"{file}: the key {key.id} seals from now on. Keep a copy where nobody else can read it.")


def _one_server(client: ApiClient, target: ServerTarget) -> ServerTarget:
    """``target`` with its server named: an app with one server needs no name."""
    active = next((view for view in client.deployments(target.app) if view.active), None)
    if active is None:
        raise NotFound(
            f"No app {target.app!r} is deployed.", remedy="`glowplug deployments` lists apps.", app=target.app
        )
    if target.server is not None:
        return target
    if len(active.servers) != 1:
        raise InvalidInput(
            f"App {target.app!r} has several servers: {', '.join(active.servers)}.",
            remedy=f"Say which: {target.app}/{active.servers[0]}.",
        )
    return ServerTarget(target.app, active.servers[0])


def _await_capture(session: Session, client: ApiClient, view: SnapshotView, timeout_s: float) -> SnapshotView:
    deadline = time.monotonic() + timeout_s
    with shown_progress(session, f"Capturing {view.app}/{view.server}") as report:
        report("starting, warming up, freezing, hashing, trial restore", None)
        while view.status is SnapshotStatus.CAPTURING:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"Snapshot {view.id} was not finished within {timeout_s:.0f} s.",
                    remedy="It goes on in the background: `glowplug snapshot ls` tells.",
                    stage="capture",
                    snapshot=view.id,
                )
            time.sleep(_LOOK_EVERY_S)
            view = _look_again(client, view)
    if view.status is SnapshotStatus.QUARANTINED:
        raise SnapshotInvalid(
            f"The capture of {view.app}/{view.server} failed: {view.reason or 'no reason given'}.",
            remedy="The agent's log says more; the server goes on with cold starts.",
            snapshot=view.id,
        )
    return view


def _look_again(client: ApiClient, view: SnapshotView) -> SnapshotView:
    # Through the list: a snapshot can be asked for by its id only once it is finished.
    found = next((other for other in client.snapshots() if other.id == view.id), None)
    if found is None:
        raise SnapshotInvalid(
            f"The capture of {view.app}/{view.server} ended without a snapshot.",
            remedy="The agent's log says why; the server goes on with cold starts.",
            snapshot=view.id,
        )
    return found


def _print_one(session: Session, view: SnapshotView, as_json: bool) -> None:
    if as_json:
        print_json(session, view)
        return
    facts = {
        "id": view.id,
        "server": ", ".join(view.servers),
        "captured as": f"{view.app}/{view.server}",
        "status": view.status.value,
        "size": format_bytes(view.bytes),
        "here": f"{format_bytes(view.here_bytes)}, deduplicated: {format_bytes(view.deduplicated_bytes)}",
        "in region": "yes" if view.is_in_region else "no",
        "sealed with": f"key {view.sealed_with}" if view.sealed_with else "",
        "captured": f"{format_age(SystemClock().wall() - view.created_at)} ago",
        "used": f"{format_age(SystemClock().wall() - view.used_at)} ago" if view.used_at is not None else "",
        "capture": format_seconds(view.capture_s) if view.capture_s is not None else "",
        "frozen": format_seconds(view.frozen_s) if view.frozen_s is not None else "",
        "restores": f"{view.restores}, of which failed: {view.failures}",
        "reason": view.reason or "",
        "canary": "; ".join(view.canary),
        "key": view.key,
    }
    rows: list[Row] = [[Text(name, "bold"), value] for name, value in facts.items() if value]
    for number, line in enumerate(_gpu_lines(view.gpus)):
        rows.append([Text("" if number else "gpus", "bold"), line])
    for name, value in view.key_fields.items():
        words = Text(KEY_FIELD_WORDS.get(name, ""), "bright_black")
        rows.append([Text(f"  {printable(name)}", "bright_black"), _cut(value)])
        rows.append(["", words])
    print_table(session, ["", ""], rows, "")


def _gpu_lines(gpus: Sequence[SnapshotGpu]) -> list[str]:
    """What was captured of which GPUs, one line a GPU; and what a restore needs for that."""
    lines = [
        f"{gpu.chip} ({format_bytes(gpu.memory_bytes)}): "
        + (f"{format_bytes(gpu.held_bytes)} of it captured" if gpu.is_given else "in the machine, not used")
        for gpu in sorted(gpus, key=lambda gpu: not gpu.is_given)
    ]
    need = (
        "a restore needs a GPU of the same kind for each, used or not, as much free memory as was captured, "
        "and the same driver"
    )
    return [*lines, need] if lines else []


def _cut(value: str) -> str:
    """`--json` has all of it; the features of a processor alone fill a screen."""
    return value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + ".."
