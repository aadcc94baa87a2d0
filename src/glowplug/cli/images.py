"""``image ls|build|inspect|rm``: the root filesystems that replicas run in. (More: :mod:`image_tasks`.)"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from glowplug.cli.client import ApiClient
from glowplug.cli.deploy import load_app_at
from glowplug.cli.options import AnyImageArgument, AnyImagesArgument, JsonOption, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.progress import Report, shown_progress
from glowplug.cli.session import Session
from glowplug.cli.text import format_age
from glowplug.observe.waterfall import format_bytes
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.image import IndexView, RemoveTask, TaskEvent
from glowplug.types.replica import ImageView

commands = typer.Typer(
    help="Root filesystems: import, build, list, push, pull, mount, remove.", no_args_is_help=True
)


@commands.command("ls")
def list_images(context: typer.Context, as_json: JsonOption = False) -> None:
    """List images."""
    session = session_of(context)
    with session.client() as client:
        views, indexes = client.images(), client.indexes()
    if as_json:
        print_json(session, {"images": _plain(views), "indexes": _plain(indexes)})
        return
    _print_indexes(session, indexes)
    if views:
        session.out.print("\n[bold]Used by deployments[/bold]")
        _print_images(session, views, as_json)


@commands.command()
def build(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE[:APP]", help="The app file, and which of its apps.")],
    as_json: JsonOption = False,
) -> None:
    """Build the images of an app's servers, without deploying it."""
    session = session_of(context)
    spec, _ = load_app_at(file).to_spec()
    images: list[ImageView] = []
    with session.client() as client:
        for server in spec["servers"]:
            view = _build(session, client, server["name"], server["image"])
            if view.id not in [image.id for image in images]:
                images.append(view)
    _print_images(session, images, as_json)


@commands.command()
def inspect(context: typer.Context, image: AnyImageArgument) -> None:
    """Show one image and what it was made from, as JSON."""
    session = session_of(context)
    with session.client() as client:
        print_json(session, client.image(image) if _is_id(image) else client.index(image))


@commands.command("rm")
def remove(context: typer.Context, images: AnyImagesArgument) -> None:
    """Remove images that nothing uses: by id, or by name. (`image gc` then frees their content.)"""
    session = session_of(context)
    with session.client() as client:
        for image in images:
            if _is_id(image):
                client.remove_image(image)
            else:
                outcome(client.image_task(RemoveTask(image=image)))
            session.say(f"Removed {image}.")


def _build(session: Session, client: ApiClient, name: str, image: dict[str, Any]) -> ImageView:
    with (
        shown_progress(session, f"Building the image of {name}") as report,
        closing(client.build(image)) as events,
    ):
        for event in events:
            report(event.text, event.fraction)
            if event.error is not None:
                raise GlowplugError.from_dict(event.error.model_dump())
            if event.image is not None:
                return event.image
    raise Unavailable(
        "The node stopped reporting before the image was finished.",
        remedy="See `glowplug image ls`, then build again.",
        server=name,
    )


def outcome(events: Generator[TaskEvent, None, None], report: Report | None = None) -> dict[str, Any]:
    """The result of a task, its progress told to ``report``. Raises what the task raised."""
    with closing(events):
        for event in events:
            if report is not None:
                report(event.text, event.fraction)
            if event.error is not None:
                raise GlowplugError.from_dict(event.error.model_dump())
            if event.result is not None:
                return event.result
    raise Unavailable(
        "The node stopped reporting before the task was finished.", remedy="See `glowplug image ls`."
    )


def _is_id(image: str) -> bool:
    return image.startswith("im-")


def _plain(views: Sequence[BaseModel]) -> list[dict[str, Any]]:
    return [view.model_dump(mode="json") for view in views]


def _print_indexes(session: Session, indexes: list[IndexView]) -> None:
    rows = [
        [
            ", ".join(index.names) or "(no name)", index.digest[:12], str(index.entries),
            format_bytes(index.content_bytes),
            "all" if index.is_complete else format_bytes(index.here_bytes),
            index.mounted or "", str(len(index.traces)),
        ]
        for index in indexes
    ]  # fmt: skip
    columns = ["NAME", "DIGEST", "FILES", "SIZE", "HERE", "MOUNTED", "TRACES"]
    print_table(session, columns, rows, "No images: glowplug image import SOURCE NAME")


def _print_images(session: Session, views: list[ImageView], as_json: bool) -> None:
    if as_json:
        print_json(session, views)
        return
    now = SystemClock().wall()
    rows = [
        [
            view.id, view.kind, format_bytes(view.bytes), format_age(now - view.created_at),
            "in use" if view.in_use else "",
        ]
        for view in views
    ]  # fmt: skip
    print_table(session, ["IMAGE", "KIND", "SIZE", "AGE", ""], rows, "No images.")
