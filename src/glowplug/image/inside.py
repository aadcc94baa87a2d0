"""Checks of what a caller says about the inside of a container: paths and environment variables."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import PurePosixPath

from glowplug.types.errors import InvalidInput

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_ENVIRONMENT = {"PATH": DEFAULT_PATH, "HOME": "/root", "LANG": "C.UTF-8"}
# The runtime's own, or ours: a bind there would break the container or hide what we put there.
RESERVED_FOLDERS = ("/proc", "/sys", "/dev", "/.glowplug", "/run/glowplug")


def check_path(path: str, what: str) -> PurePosixPath:
    """Return ``path`` if it is absolute and says plainly where it leads; raise InvalidInput otherwise."""
    is_plain = path.startswith("/") and not path.startswith("//") and posixpath.normpath(path) == path
    if not is_plain or any(ord(character) < 32 for character in path):
        raise InvalidInput(
            f"The {what} {path!r} is not a plain absolute path.",
            remedy="Write it from / on, without '.', '..', doubled or trailing slashes.",
            path=path,
        )
    return PurePosixPath(path)


def check_destination(path: str, what: str) -> PurePosixPath:
    """As :func:`check_path`, and refuse the root itself and the folders that belong to the runtime."""
    checked = check_path(path, what)
    if path == "/" or any(checked.is_relative_to(reserved) for reserved in RESERVED_FOLDERS):
        raise InvalidInput(
            f"Nothing can be placed at {path} of a container ({what}).",
            remedy=f"Choose a path other than / and outside {', '.join(RESERVED_FOLDERS)}.",
            path=path,
        )
    return checked


def environment_of(base: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """``base`` with what the caller ``chosen`` on top; raises InvalidInput for impossible names."""
    for name, value in chosen.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidInput(
                f"The environment variable {name!r} is not well formed.",
                remedy="Names must not be empty nor hold '=', and neither names nor values a null character.",
                name=name,
            )
    return {**base, **chosen}


def put_first(path: str, folder: str) -> str:
    """A ``PATH`` in which ``folder`` is searched first, unless the caller placed it already."""
    return path if folder in path.split(":") else f"{folder}:{path}"
