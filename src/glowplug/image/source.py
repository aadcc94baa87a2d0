"""The two questions that every kind of image answers: what is it made of, and how is it made?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from glowplug.image.job import Job
from glowplug.image.record import BindRecord, Lower


@dataclass(frozen=True)
class Prepared:
    """What ``image.json`` must know of an image that has just been made."""

    env: dict[str, str]
    python: str | None
    binds: list[BindRecord] = field(default_factory=list)
    lower: Lower | None = None
    digest: str | None = None
    content_bytes: int = 0
    workdir: str = "/"


def make_overlay_folders(folder: Path) -> None:
    """What an overlay over a tree that must not change needs; it takes the mount points of runtimes."""
    for name in ("rootfs", "upper", "work"):
        (folder / name).mkdir(mode=0o755)


class Source(Protocol):
    """A specification that was looked at, and found good, on this machine.

    Duties: ``identity`` is JSON, equal for equal content and different when content that matters to a
    running server (and so to its memory snapshot) differs. ``prepare`` fills the empty ``folder``, which
    its caller publishes or deletes, and leaves nothing anywhere else if it fails.
    """

    def identity(self) -> dict[str, object]:
        """What the image's id is made of."""
        ...

    def prepare(self, folder: Path, job: Job) -> Prepared:
        """Make ``folder/rootfs`` (empty, if the tree is elsewhere) and whatever belongs to it."""
        ...
