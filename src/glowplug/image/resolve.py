"""Follow symbolic links one by one, inside a given root, without ever leaving it.

Needed twice: to look into a root filesystem that somebody else made (its links may be absolute, dangling,
circular or aimed at our own ``/etc/shadow``), and to learn which links of the host a path passes through,
so that the same path works in a root filesystem that only holds its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glowplug.types.errors import InvalidInput

MAX_LINKS = 40  # what Linux itself allows (path_resolution(7))
HOST_ROOT = Path("/")


@dataclass(frozen=True)
class Trace:
    """``links``: every link passed, as (where it is, what it says), in order. ``end``: where it leads.

    All paths are absolute as seen inside the root. The end need not exist.
    """

    links: tuple[tuple[Path, str], ...]
    end: Path


def trace(path: Path, root: Path = HOST_ROOT) -> Trace:
    """Follow absolute ``path`` inside ``root``. Raises InvalidInput when the links go in circles."""
    links: list[tuple[Path, str]] = []
    pending = [part for part in reversed(path.parts) if part != "/"]
    current = HOST_ROOT
    while pending:
        part = pending.pop()
        if part == "..":
            current = current.parent
            continue
        step = current / part
        on_disk = root / step.relative_to(HOST_ROOT)
        if not on_disk.is_symlink():
            current = step
            continue
        if len(links) == MAX_LINKS:
            raise InvalidInput(
                f"The path {path} goes through more than {MAX_LINKS} symbolic links.",
                remedy="Remove the circle of links, or name the real path.",
                path=str(path),
                root=str(root),
            )
        target = on_disk.readlink()
        links.append((step, str(target)))
        if target.is_absolute():
            current = HOST_ROOT
        pending.extend(part for part in reversed(target.parts) if part != "/")
    return Trace(tuple(links), current)


def look_up(path: Path, root: Path) -> Path | None:
    """Where ``path`` of ``root`` lies on this machine, or None if it is not there."""
    found = root / trace(path, root).end.relative_to(HOST_ROOT)
    return found if found.exists() else None
