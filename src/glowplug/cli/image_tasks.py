"""``image import|push|pull|prefetch|mount|unmount|verify|gc|diff``: what a node does with whole images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from glowplug.cli.images import commands, outcome
from glowplug.cli.options import JsonOption, NamedImageArgument, parse_assignments, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.cli.text import format_seconds
from glowplug.observe.waterfall import format_bytes
from glowplug.types.image import (
    DiffTask,
    GcTask,
    ImageTask,
    ImportTask,
    MountTask,
    PrefetchTask,
    PullTask,
    PushTask,
    UnmountTask,
    VerifyTask,
)

_PATH_PREFIXES = ("oci:", "dockerfile:")


@commands.command("import")
def import_(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help="A folder, a tar file, oci:PATH[:TAG], docker://REFERENCE or dockerfile:PATH."),
    ],
    name: Annotated[str | None, typer.Argument(help="What to call it: NAME[:TAG].")] = None,
    order_by: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE", help="Lay out first what this image's access traces say is read first."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Leave this path of a folder out (repeatable).")
    ] = None,
    clamp_to: Annotated[
        int | None, typer.Option(metavar="UNIX_TIME", help="No file's time shall be later than this.")
    ] = None,
    platform: Annotated[
        str | None, typer.Option(help="Of an image for several: OS/ARCHITECTURE (default: this machine's).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="The registry speaks HTTP, without TLS.")
    ] = False,
    build_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For a Dockerfile (repeatable).")
    ] = None,
    build_context: Annotated[
        Path | None, typer.Option("--context", help="Folder a Dockerfile copies from (default: its own).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an image of what exists already, so that it can be mounted before its content is read."""
    session = session_of(context)
    task = ImportTask(
        source=_absolute(source),
        name=name,
        order_by=order_by,
        exclude=exclude or [],
        clamp_to_s=clamp_to,
        platform=platform,
        insecure=insecure,
        build_args=parse_assignments(build_arg or []),
        context_dir=str(build_context.absolute()) if build_context else None,
    )
    result = _do(session, f"Importing {source}", task)
    _show(
        session,
        as_json,
        result,
        f"{name or result['digest'][:12]}: {result['entries']} files, {format_bytes(result['content_bytes'])}"
        f" ({format_bytes(result['new_bytes'])} new) in {format_seconds(result['seconds'])}",
    )


@commands.command()
def push(
    context: typer.Context,
    image: NamedImageArgument,
    name: Annotated[str | None, typer.Argument(help="Its name in the region (default: the same).")] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="Store chunks with zstd where that saves a tenth or more.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring an image to the region; content that is there already is not sent again."""
    session = session_of(context)
    result = _do(session, f"Pushing {image}", PushTask(image=image, name=name, compress=compress))
    _show(session, as_json, result, f"Pushed {image}: {format_bytes(result['sent_bytes'])} sent.")


@commands.command()
def pull(
    context: typer.Context,
    image: NamedImageArgument,
    content: Annotated[
        bool, typer.Option("--content", help="Fetch all content too, not only the index.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch an image's index (a few MB) from the region; its content comes when it is read."""
    session = session_of(context)
    result = _do(session, f"Pulling {image}", PullTask(image=image, content=content))
    _show(session, as_json, result, f"Pulled {image} ({result['digest'][:12]}).")


@commands.command()
def prefetch(
    context: typer.Context,
    image: NamedImageArgument,
    everything: Annotated[
        bool, typer.Option("--all", help="All content, not only what traces say is needed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch content of an image before anything reads it."""
    session = session_of(context)
    result = _do(session, f"Fetching {image}", PrefetchTask(image=image, all=everything))
    _show(session, as_json, result, f"Fetched {format_bytes(result['bytes'])} of {image}.")


@commands.command()
def mount(
    context: typer.Context,
    image: NamedImageArgument,
    target: Annotated[
        Path | None, typer.Argument(help="An empty folder on the node to show it at (read-only).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Mount an image on the node."""
    session = session_of(context)
    task = MountTask(image=image, target=str(target.absolute()) if target else None)
    result = _do(session, f"Mounting {image}", task)
    _show(
        session,
        as_json,
        result,
        f"{result['path']} ({result['kind']}, {1000 * result['seconds']:.1f} ms)",
    )


@commands.command()
def unmount(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="The image's name, or the folder it was mounted at.")],
) -> None:
    """Unmount an image from the node."""
    session = session_of(context)
    wanted = str(Path(image).absolute()) if "/" in image and Path(image).is_dir() else image
    _do(session, f"Unmounting {image}", UnmountTask(image=wanted))
    session.say(f"Unmounted {image}.")


@commands.command()
def verify(
    context: typer.Context,
    image: Annotated[str | None, typer.Argument(help="Only this image's content (default: all).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hash the content on the node again; what is damaged is dropped, and fetched anew when it is read."""
    session = session_of(context)
    result = _do(session, "Verifying", VerifyTask(image=image))
    _show(
        session,
        as_json,
        result,
        f"{result['chunks']} chunks ({format_bytes(result['bytes'])}) hashed, {result['damaged']} damaged.",
    )
    if result["damaged"]:
        raise typer.Exit(1)


@commands.command()
def gc(
    context: typer.Context,
    budget: Annotated[
        int | None, typer.Option("--budget-bytes", min=0, help="Keep at most this much of what is unused.")
    ] = None,
    region: Annotated[
        bool, typer.Option("--region", help="In the region instead: packs that no image needs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Free what no image here needs, then the least recently used beyond the budget."""
    session = session_of(context)
    result = _do(session, "Collecting garbage", GcTask(budget_bytes=budget, region=region))
    _show(session, as_json, result, f"Freed {format_bytes(result['freed_bytes'])}.")


@commands.command()
def diff(
    context: typer.Context,
    first: NamedImageArgument,
    second: NamedImageArgument,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many names.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Compare two images, name by name; exit code 1 if they differ."""
    session = session_of(context)
    result = _do(session, "Comparing", DiffTask(first=first, second=second, limit=limit))
    if as_json:
        print_json(session, result)
    else:
        rows = [[change["sign"], change["path"], change["what"]] for change in result["changes"]]
        print_table(session, ["", "PATH", "WHAT"], rows, "They are the same.")
        shared = format_bytes(result["shared_bytes"])
        session.say(f"{result['differing']} names differ; {shared} of content is shared.")
    if result["differing"]:
        raise typer.Exit(1)


def _do(session: Session, title: str, task: ImageTask) -> dict[str, Any]:
    with session.client() as client, shown_progress(session, title) as report:
        return outcome(client.image_task(task), report)


def _show(session: Session, as_json: bool, result: dict[str, Any], text: str) -> None:
    if as_json:
        print_json(session, result)
    else:
        session.out.print(text, markup=False, highlight=False, soft_wrap=True)


def _absolute(source: str) -> str:
    """The source with its path, if it has one, made absolute: the node may run elsewhere than we do."""
    for prefix in _PATH_PREFIXES:
        if source.startswith(prefix):
            return prefix + os.path.abspath(source.removeprefix(prefix))  # noqa: PTH100 - a tag may follow
    return source if "://" in source else os.path.abspath(source)  # noqa: PTH100 - keeps it a string
