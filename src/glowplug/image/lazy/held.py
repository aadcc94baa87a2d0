"""What mounts are made from, kept by a second link for as long as any copy of a mount lives anywhere.

An image may be removed from the catalog, or graduate anew, while a container still reads it. So a mount's
source is never the catalog's own file but a link to it in ``<state>/run/lazy/held/<digest>/``, which stays
until nobody has it open. The link's name says what the mount is, and the kernel's table of mounts shows that
name: no record of ours can contradict the kernel.

=============================  ==================================================================
``lazy-<major>-<minor>.erofs``  the index; content from the FUSE filesystem that is that device
``graduated-<hash>.erofs``      the index on local packs whose record has this hash
``gathered-<hash>.erofs``       the small files of the graduated image whose record has this hash
``plain.erofs``                 the index, served by a process of its own
``chunks.bin``                  the table of chunks that are pinned
``manifest.json`` and others    what the daemon needs besides
=============================  ==================================================================
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.manifest import FileDigest
from glowplug.image.lazy.in_use import is_open_elsewhere
from glowplug.image.lazy.loop import backing_file
from glowplug.image.lazy.mount_table import MountEntry, mounted_at, read_mount_table
from glowplug.types.errors import Conflict, InvalidInput
from glowplug.types.paths import StateDir

Kind = Literal["graduated", "lazy", "loop", "plain_fuse"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAZY = re.compile(r"lazy-(\d+)-(\d+)\.erofs")
_GRADUATED = re.compile(r"graduated-([0-9a-f]{64})\.erofs")
_PLAIN = "plain.erofs"
_CHUNKS = "chunks.bin"


@dataclass(frozen=True)
class CurrentMount:
    """What is mounted. ``detail``: the device of the blob (lazy, loop), its record's hash (graduated)."""

    kind: Kind
    detail: str = ""


@dataclass(frozen=True)
class HeldImages:
    """Paths below ``<state>/run/lazy``, by digest; every method refuses what is no digest."""

    state: StateDir

    @property
    def blobs(self) -> Path:
        """The daemon's FUSE filesystem: one file per image, named by its digest."""
        return self.state.lazy / "blobs"

    @property
    def mounts(self) -> Path:
        """One mount point per image."""
        return self.state.lazy / "mounts"

    @property
    def _links(self) -> Path:
        return self.state.lazy / "held"

    def target(self, digest: str) -> Path:
        """Where the image is mounted."""
        return self.mounts / _checked(digest)

    def lock(self, digest: str) -> Path:
        """Held while its mount changes."""
        return self.state.lazy / "locks" / _checked(digest)

    def lazy(self, digest: str, device: str) -> Path:
        """The link for a mount of the blob on the FUSE filesystem ``device`` (``major:minor``)."""
        return self._links / _checked(digest) / f"lazy-{device.replace(':', '-')}.erofs"

    def graduated(self, digest: str, record_hash: str) -> Path:
        """The link for a mount on packs."""
        return self._links / _checked(digest) / f"graduated-{record_hash}.erofs"

    def gathered(self, digest: str, record_hash: str) -> Path:
        """The link for the small files of a mount on packs."""
        return self._links / _checked(digest) / f"gathered-{record_hash}.erofs"

    def plain(self, digest: str) -> Path:
        """The link that a process which serves the image keeps open."""
        return self._links / _checked(digest) / _PLAIN

    def chunks(self, digest: str) -> Path:
        """The link to the table that is pinned."""
        return self._links / _checked(digest) / _CHUNKS

    def hold_for_daemon(self, folder: IndexFolder) -> None:
        """Links to what the daemon needs to go on serving an image that is removed from the catalog."""
        links = self._links / _checked(folder.digest)
        for file in (folder.manifest_path, folder.placement_path):
            fresh = links / f".{file.name}.new"
            fresh.unlink(missing_ok=True)
            with suppress(FileNotFoundError):  # an image that was never pushed has no placement
                os.link(file, fresh)
                fresh.replace(links / file.name)
            fresh.unlink(missing_ok=True)  # rename(2) does nothing if both are links of one file

    def digests(self) -> set[str]:
        """Of every image that has a link, a mount point or a mount."""
        found = {entry.path.name for entry in read_mount_table() if entry.path.parent == self.mounts}
        for folder in (self._links, self.mounts):
            with suppress(FileNotFoundError):
                found.update(entry.name for entry in folder.iterdir())
        return {name for name in found if _DIGEST.fullmatch(name)}

    def current(self, digest: str) -> CurrentMount | None:
        """What is mounted now, by the kernel's own account; None if nothing is."""
        entry = mounted_at(self.target(digest))
        return None if entry is None else _describe(entry)

    def is_used(self, digest: str) -> bool:
        """Whether anything anywhere, also in other mount namespaces, reads the image by way of a link."""
        folder = self._links / _checked(digest)
        return any(is_open_elsewhere(link) for link in folder.glob("*.erofs"))

    def release(self, digest: str) -> None:
        """Remove the links and the mount point of an image that nobody uses."""
        shutil.rmtree(self._links / _checked(digest), ignore_errors=True)
        with suppress(OSError):
            self.target(digest).rmdir()


def hold(file: Path, link: Path, expected: FileDigest) -> Path:
    """Make ``link`` a link of ``file`` unless it exists; returns it. Raises InvalidInput if it is damaged.

    One that exists is never replaced: a mount may have it open, and content by that name does not change.
    """
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.link(file, link)
    if FileDigest.of(link.read_bytes()) != expected:
        if not is_open_elsewhere(link):
            link.unlink()  # a good file may come
        raise InvalidInput(
            f"{file} is damaged: it is not what the image's manifest says.",
            remedy="Unmount the image, then pull or import it again.",
            path=str(file),
        )
    return link


def _describe(entry: MountEntry) -> CurrentMount:
    source = Path(entry.source)
    file = backing_file(source)
    is_loop = file is not None
    name = (file or source).name
    if found := _GRADUATED.fullmatch(name):
        return CurrentMount("graduated", found[1])
    if found := _LAZY.fullmatch(name):
        return CurrentMount("loop" if is_loop else "lazy", f"{found[1]}:{found[2]}")
    if name == _PLAIN:
        return CurrentMount("plain_fuse")
    raise Conflict(
        f"{entry.source}, which is none of ours, is mounted at {entry.path}.",
        remedy="Unmount it: that folder is Glowplug's own.",
        path=str(entry.path),
    )


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"{digest[:80]!r} is not the digest of an image.", remedy="See `glowplug image ls`."
        )
    return digest
