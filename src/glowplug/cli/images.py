"""``image ls|build|inspect|rm``: the root filesystems that replicas run in."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import typer

from glowplug.cli.client import ApiClient
from glowplug.cli.deploy import load_app_at
from glowplug.cli.options import ImageArgument, ImagesArgument, JsonOption, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.progress import shown_progress
from glowplug.cli.session import Session
from glowplug.cli.text import format_age
from glowplug.observe.waterfall import format_bytes
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.replica import ImageView

commands = typer.Typer(help="Root filesystems: list, build, inspect, remove.", no_args_is_help=True)


@commands.command("ls")
def list_images(context: typer.Context, as_json: JsonOption = False) -> None:
    """List images."""
    session = session_of(context)
    with session.client() as client:
        views = client.images()
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
def inspect(context: typer.Context, image: ImageArgument) -> None:
    """Show one image and what it was made from, as JSON."""
    session = session_of(context)
    with session.client() as client:
        print_json(session, client.image(image))


@commands.command("rm")
def remove(context: typer.Context, images: ImagesArgument) -> None:
    """Remove images that nothing uses."""
    session = session_of(context)
    with session.client() as client:
        for image_id in images:
            client.remove_image(image_id)
            session.say(f"Removed {image_id}.")


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
