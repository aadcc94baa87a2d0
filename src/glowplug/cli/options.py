"""Options that several commands share, and readers of their values."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from glowplug.cli import completion
from glowplug.cli.session import Session
from glowplug.cli.text import parse_duration_s
from glowplug.types.errors import InvalidInput

_ENV_NAME = re.compile(r"[^=\x00]+")


def session_of(context: typer.Context) -> Session:
    """The session that the root command made."""
    session = context.find_root().obj
    assert isinstance(session, Session)  # noqa: S101 - set by the root callback, before any command
    return session


def _wants_json(context: Any, value: bool) -> bool:
    session = context.find_root().obj
    if value and isinstance(session, Session):
        session.wants_json = True
    return value


def duration(text: str | float) -> float:
    """A parser for options: seconds. Raises typer.BadParameter."""
    try:
        return parse_duration_s(str(text))
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from error


def parse_assignments(assignments: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as a dictionary. Raises typer.BadParameter."""
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not _ENV_NAME.fullmatch(name):
            raise typer.BadParameter(f"{assignment!r} is not NAME=VALUE.")
        values[name] = value
    return values


JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=_wants_json, help="Print the API's JSON instead of a table; errors too, on stderr."
    ),
]
AppArgument = Annotated[str, typer.Argument(help="An app.", autocompletion=completion.apps)]
OptionalAppArgument = Annotated[
    str | None, typer.Argument(help="Only this app.", autocompletion=completion.apps)
]
ServerArgument = Annotated[
    str,
    typer.Argument(help="An app, or one of its servers as APP/SERVER.", autocompletion=completion.servers),
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        help="A replica's id, or APP or APP/SERVER for its newest replica.",
        autocompletion=completion.replicas,
    ),
]
SnapshotArgument = Annotated[
    str, typer.Argument(help="A snapshot's id.", autocompletion=completion.snapshots)
]
SnapshotsArgument = Annotated[
    list[str], typer.Argument(help="Ids of snapshots.", autocompletion=completion.snapshots)
]
AnyImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...", help="Names, digests or ids of images.", autocompletion=completion.images
    ),
]
AnyImageArgument = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="A name, digest or id.", autocompletion=completion.images),
]
NamedImageArgument = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="An image's name or digest.", autocompletion=completion.image_names),
]
DurationOption = Annotated[
    float | None,
    typer.Option("--since", parser=duration, metavar="DURATION", help="Only the last 90s, 15m, 1h, 2d, ..."),
]
