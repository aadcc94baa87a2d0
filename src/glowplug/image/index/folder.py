"""One image's index on this machine: a folder named by the image's digest."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import blake3

from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_read import read_index
from glowplug.image.index.manifest import MAX_MANIFEST_BYTES, FileDigest, ImageManifest
from glowplug.image.index.tree import Tree
from glowplug.types.errors import InvalidInput, NotFound

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.erofs"
CHUNKS_NAME = "chunks.bin"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class IndexFolder:
    """A folder of the catalog. ``manifest`` was checked against the digest when it was opened."""

    path: Path
    digest: str
    manifest: ImageManifest

    @classmethod
    def open(cls, path: Path, digest: str) -> IndexFolder:
        """Raises NotFound, or InvalidInput if the manifest is another's or a file's length is wrong."""
        try:
            with (path / MANIFEST_NAME).open("rb") as file:
                manifest = ImageManifest.parse(file.read(MAX_MANIFEST_BYTES + 1), digest)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise absent(digest) from error
        except IsADirectoryError as error:
            raise _damaged(digest, path / MANIFEST_NAME, "is a folder") from error
        folder = cls(path, digest, manifest)
        folder._check_length(folder.index_path, manifest.index)
        folder._check_length(folder.chunks_path, manifest.chunks)
        return folder

    @property
    def manifest_path(self) -> Path:
        """The manifest: what the digest is of."""
        return self.path / MANIFEST_NAME

    @property
    def index_path(self) -> Path:
        """The EROFS image."""
        return self.path / INDEX_NAME

    @property
    def chunks_path(self) -> Path:
        """The table of chunks."""
        return self.path / CHUNKS_NAME

    @property
    def placement_path(self) -> Path:
        """Where the chunks lie in the region. Optional, and not covered by the digest."""
        return self.path / "placement.bin"

    @property
    def imports_path(self) -> Path:
        """The import graph: what programs will read. Optional, and not covered by the digest."""
        return self.path / "imports.bin"

    @property
    def graduated_index_path(self) -> Path:
        """The EROFS image on local packs. Optional."""
        return self.path / "graduated.erofs"

    @property
    def gathered_path(self) -> Path:
        """The image of its small files, for that one. Optional."""
        return self.path / "gathered.erofs"

    @property
    def graduated_record_path(self) -> Path:
        """What that image needs. Optional."""
        return self.path / "graduated.json"

    @property
    def traces_path(self) -> Path:
        """Folder of access traces. Optional."""
        return self.path / "traces"

    def table(self) -> ChunkTable:
        """The table of chunks, mapped. Raises InvalidInput."""
        return ChunkTable.open(self.chunks_path)

    def tree(self) -> Tree:
        """The whole tree. Raises InvalidInput."""
        return read_index(self.index_path.read_bytes(), self.table())

    def verify(self) -> None:
        """Hash both files and read the tree. Raises InvalidInput naming what is damaged."""
        for path, expected in (
            (self.index_path, self.manifest.index),
            (self.chunks_path, self.manifest.chunks),
        ):
            self._check_length(path, expected)
            if _hash(path) != expected.blake3:
                raise _damaged(self.digest, path, "is not what the manifest says")
        if sum(1 for _ in self.tree().walk()) != self.manifest.entries:
            raise _damaged(self.digest, self.manifest_path, "counts names that are not there")

    def _check_length(self, path: Path, expected: FileDigest) -> None:
        try:
            found = os.lstat(path)
        except FileNotFoundError as error:
            raise _damaged(self.digest, path, "is missing") from error
        if not stat.S_ISREG(found.st_mode) or found.st_size != expected.size_bytes:
            raise _damaged(self.digest, path, "does not have the length that the manifest says")


def absent(name_or_digest: str) -> NotFound:
    """The error of an image that is not here."""
    shown = name_or_digest[:200]
    return NotFound(
        f"There is no image {shown!r} on this machine.",
        remedy="`glowplug image ls` lists those there are; `glowplug image pull` fetches one.",
        image=shown,
    )


def _damaged(digest: str, path: Path, why: str) -> InvalidInput:
    return InvalidInput(
        f"Image {digest[:16]} is damaged: its {path.name} {why}.",
        remedy=f"`glowplug image pull {digest[:16]}`, or import it again.",
        digest=digest,
        file=path.name,
    )


def _hash(path: Path) -> str:
    digest = blake3.blake3()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
