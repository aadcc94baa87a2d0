"""What is mounted where, as the kernel tells it: the only record of mounts that is true after a crash."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPED = re.compile(rb"\\([0-7]{3})")  # space, tab, newline and backslash, by proc_pid_mountinfo(5)


@dataclass(frozen=True)
class MountEntry:
    """One line of ``/proc/self/mountinfo``. ``device`` (``major:minor``) names the filesystem's instance."""

    path: Path
    device: str
    kind: str  # of filesystem: ``erofs``, ``fuse.glowplug``
    source: str


def read_mount_table(table: Path = Path("/proc/self/mountinfo")) -> list[MountEntry]:
    """All mounts of this process's namespace, in the order in which they were made."""
    return [entry for line in table.read_bytes().splitlines() if (entry := _parse(line)) is not None]


def mounted_at(path: Path) -> MountEntry | None:
    """The topmost mount at ``path`` (absolute, its folders without links), None if there is none."""
    found = [entry for entry in read_mount_table() if entry.path == path]
    return found[-1] if found else None


def _parse(line: bytes) -> MountEntry | None:
    # id parent major:minor root path options [optional...] - filesystem source options
    fields, _, rest = line.partition(b" - ")
    before, after = fields.split(b" "), rest.split(b" ")
    if len(before) < 6 or len(after) < 2:
        return None
    return MountEntry(
        path=Path(_text(before[4])),
        device=before[2].decode(),
        kind=after[0].decode(),
        source=_text(after[1]),
    )


def _text(field: bytes) -> str:
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), field)
    return raw.decode(errors="surrogateescape")
