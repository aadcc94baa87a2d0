"""``zone-cache up|status|down``: an nginx near the nodes that keeps what they fetch from the region."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from glowplug.chunks.remote_settings import RemoteSettings
from glowplug.chunks.zone_cache import ZoneCache, ZoneCacheStatus
from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.observe.waterfall import format_bytes
from glowplug.types.errors import InvalidInput, NotFound
from glowplug.types.spec import Spec

DEFAULT_LISTEN = "127.0.0.1:8090"
DEFAULT_MAX_BYTES = 100 << 30
DEFAULT_FOLDER = Path("/var/cache/glowplug-zone")  # not in the state directory, which only root may enter
_SETTINGS_NAME = "zone-cache.json"

commands = typer.Typer(
    help="Cache servers between nodes and region: start, look at, stop.", no_args_is_help=True
)

FolderOption = Annotated[
    Path | None, typer.Option(help="Where it keeps everything (default: /var/cache/glowplug-zone).")
]


class _Settings(Spec):
    """What ``up`` was told, for ``status`` and ``down``."""

    origin: str
    listen: str
    max_bytes: int


@commands.command()
def up(
    context: typer.Context,
    origin: Annotated[
        str,
        typer.Argument(help="The region: s3://.., gs://.., az://.. or https://..", envvar="GLOWPLUG_REGION"),
    ],
    listen: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where it answers.")] = DEFAULT_LISTEN,
    folder: FolderOption = None,
    max_bytes: Annotated[int, typer.Option(min=1 << 20, help="How much it may keep.")] = DEFAULT_MAX_BYTES,
) -> None:
    """Start a cache server (Debian's nginx), or give the running one new settings."""
    session = session_of(context)
    place = _folder(folder)
    settings = _Settings(origin=_origin_url(origin), listen=listen, max_bytes=max_bytes)
    status = _cache(settings, place).up()
    (place / _SETTINGS_NAME).write_text(settings.model_dump_json())
    session.out.print(f"The zone cache answers at http://{status.listen}", markup=False, soft_wrap=True)
    session.say(f"Next: glowplug up --region {origin} --zone http://{status.listen}", style="bright_black")


@commands.command()
def status(context: typer.Context, folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """Show whether it runs and how much it holds; exit code 1 if it does not answer."""
    session = session_of(context)
    found = _known(folder).status()
    if as_json:
        print_json(session, _plain(found))
    else:
        state = "answers" if found.is_answering else "does not answer"
        row = [
            found.listen, state, str(found.pid or ""),
            f"{format_bytes(found.cached_bytes)} of {format_bytes(found.max_bytes)}", found.origin,
        ]  # fmt: skip
        print_table(session, ["LISTENS", "STATE", "PID", "HOLDS", "ORIGIN"], [row], "")
    if not found.is_answering:
        raise typer.Exit(1)


@commands.command()
def down(context: typer.Context, folder: FolderOption = None) -> None:
    """Stop it; what it holds is kept for the next time."""
    session = session_of(context)
    _known(folder).down()
    session.say("Stopped.")


def _folder(folder: Path | None) -> Path:
    return (folder or DEFAULT_FOLDER).absolute()


def _origin_url(region: str) -> str:
    objects = RemoteSettings(region_url=region).objects()
    url: str | None = getattr(objects, "origin_url", lambda: None)()
    if url is None:
        raise InvalidInput(
            f"{region} cannot be reached by HTTP, so nothing can be cached on the way there.",
            remedy="Name a region such as s3://.., gs://.., az://.. or https://..",
        )
    return url


def _known(folder: Path | None) -> ZoneCache:
    place = _folder(folder)
    try:
        settings = _Settings.model_validate_json((place / _SETTINGS_NAME).read_bytes())
    except (OSError, ValidationError) as problem:
        raise NotFound(
            f"There is no zone cache in {place}.",
            remedy="Start one with `glowplug zone-cache up REGION`, or name its --folder.",
        ) from problem
    return _cache(settings, place)


def _cache(settings: _Settings, folder: Path) -> ZoneCache:
    return ZoneCache(settings.origin, settings.listen, folder, settings.max_bytes)


def _plain(found: ZoneCacheStatus) -> dict[str, object]:
    return {
        "pid": found.pid, "is_answering": found.is_answering, "listen": found.listen, "origin": found.origin,
        "folder": str(found.folder), "cached_bytes": found.cached_bytes, "max_bytes": found.max_bytes,
    }  # fmt: skip
