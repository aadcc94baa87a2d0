"""The images of one machine: their indexes by digest, and the names given to them.

An index is wholly here or not here at all, whatever is killed when: it is written beside, synced, and
renamed into place. Everything may be called from several threads and processes at once; changes take turns,
readers wait for nobody. Whether an image is in use is not known here: who removes one asks the mounts first.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import Superblock
from glowplug.image.index.erofs_scan import BlobMap
from glowplug.image.index.folder import CHUNKS_NAME, INDEX_NAME, MANIFEST_NAME, IndexFolder, absent
from glowplug.image.index.image_name import (
    check_name,
    file_name_of,
    is_digest,
    is_digest_prefix,
    name_of_file,
)
from glowplug.image.index.manifest import FileDigest, ImageManifest
from glowplug.image.job import Job
from glowplug.image.lock import held
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import InvalidInput, NotFound, ResourceExhausted
from glowplug.types.paths import StateDir

_log = logging.getLogger(__name__)

CHANGE_TIMEOUT_S = 60.0  # others' changes are a few fsyncs of some MB each
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Catalog:
    """All image indexes below one state directory."""

    def __init__(self, state: StateDir, clock: Clock | None = None) -> None:
        self._root = state.indexes
        self._staging = self._root / ".staging"
        self._names = self._root / ".names"
        self._clock = clock or SystemClock()

    def add(self, manifest: ImageManifest, index: bytes, chunks: bytes) -> IndexFolder:
        """Keep an image's index, durably; one that is here already costs nothing.

        Raises InvalidInput unless the files are those of the manifest, ResourceExhausted if the disk is full.
        """
        _check_content(manifest, index, chunks)
        digest = manifest.image_digest
        with self._changing(digest):
            try:
                return self.get(digest)
            except NotFound:
                pass
            except InvalidInput as damage:
                _log.warning("replacing image %s: %s", digest, damage.message)
                self._discard(self._root / digest)
            staged = Path(tempfile.mkdtemp(dir=self._staging))
            _write_synced(staged / INDEX_NAME, index)
            _write_synced(staged / CHUNKS_NAME, chunks)
            _write_synced(staged / MANIFEST_NAME, manifest.canonical())
            _sync_directory(staged)
            staged.rename(self._root / digest)
            _sync_directory(self._root)
        return self.get(digest)

    def get(self, digest: str) -> IndexFolder:
        """The index of this image. Raises NotFound, or InvalidInput if it is damaged."""
        if not is_digest(digest):
            raise absent(digest)
        return IndexFolder.open(self._root / digest, digest)

    def digests(self) -> list[str]:
        """Of all images here, the damaged ones among them, sorted."""
        return sorted(filter(is_digest, _listed(self._root)))

    def list(self) -> list[IndexFolder]:
        """All sound images here, by digest; damaged ones are logged and left out."""
        found: list[IndexFolder] = []
        for digest in self.digests():
            try:
                found.append(self.get(digest))
            except NotFound:  # removed since its name was read
                continue
            except InvalidInput as damage:
                _log.warning("%s", damage.message)
        return found

    def remove(self, digest: str) -> None:
        """Forget an image and its names. Raises NotFound."""
        with self._changing(digest):
            if digest not in self.digests():
                raise absent(digest)
            self._discard(self._root / digest)
            for name, named in self.names().items():
                if named == digest:
                    (self._names / file_name_of(name)).unlink(missing_ok=True)
            _sync_directory(self._names)

    def name(self, name: str, digest: str) -> None:
        """Call this image that from now on. Raises InvalidInput (a bad name), NotFound (no such image)."""
        check_name(name)
        with self._changing(digest):
            self.get(digest)
            fresh = self._staging / "name"
            _write_synced(fresh, f"{digest}\n".encode())
            fresh.replace(self._names / file_name_of(name))
            _sync_directory(self._names)

    def unname(self, name: str) -> None:
        """Forget a name. Raises NotFound."""
        check_name(name)
        try:
            (self._names / file_name_of(name)).unlink()
        except FileNotFoundError as error:
            raise absent(name) from error

    def resolve(self, name_or_digest: str) -> str:
        """The digest of the image that goes by this name, or whose digest begins with these (8 or more).

        Raises NotFound, or InvalidInput for what is neither or could be several.
        """
        if not is_digest_prefix(name_or_digest):
            check_name(name_or_digest)
            digest = self._named(name_or_digest)
            if digest is None or not (self._root / digest).is_dir():
                raise absent(name_or_digest)
            return digest
        matching = [digest for digest in self.digests() if digest.startswith(name_or_digest)]
        if not matching:
            raise absent(name_or_digest)
        if len(matching) > 1:
            raise InvalidInput(
                f"{len(matching)} images have a digest that begins with {name_or_digest}.",
                remedy="Give more of its digits.",
                digests=matching,
            )
        return matching[0]

    def names(self) -> dict[str, str]:
        """The digest that each name stands for, by name."""
        found = {name: self._named(name) for name in map(name_of_file, sorted(_listed(self._names)))}
        return {name: digest for name, digest in found.items() if digest is not None}

    def _named(self, name: str) -> str | None:
        try:
            with (self._names / file_name_of(name)).open("rb") as file:
                digest = file.read(80).decode("ascii", "replace").strip()
        except (FileNotFoundError, IsADirectoryError):
            return None
        return digest if is_digest(digest) else None

    @contextmanager
    def _changing(self, digest: str) -> Iterator[None]:
        """One change at a time, which finds an empty staging folder: killed ones leave theirs behind."""
        job = Job(lambda _text, _fraction: None, self._clock, self._clock.monotonic() + CHANGE_TIMEOUT_S)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with held(self._root / ".lock", job, "waiting for a change of the image catalog"):
                shutil.rmtree(self._staging, ignore_errors=True)
                self._staging.mkdir(mode=0o700, exist_ok=True)
                self._names.mkdir(mode=0o700, exist_ok=True)
                try:
                    yield
                finally:
                    shutil.rmtree(self._staging, ignore_errors=True)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise ResourceExhausted(
                f"The disk is full: image {digest[:16]} could not be kept.",
                remedy="Make room (`glowplug image gc`) and try again.",
                digest=digest,
            ) from error

    def _discard(self, folder: Path) -> None:
        """Make it vanish at once, then remove it; a crash between leaves it to the next change."""
        gone = self._staging / "removed"
        folder.rename(gone)
        _sync_directory(self._root)
        shutil.rmtree(gone)


def _check_content(manifest: ImageManifest, index: bytes, chunks: bytes) -> None:
    for name, data, expected in (
        (INDEX_NAME, index, manifest.index),
        (CHUNKS_NAME, chunks, manifest.chunks),
    ):
        if FileDigest.of(data) != expected:
            raise InvalidInput(
                f"The {name} given for image {manifest.image_digest[:16]} is not the one of its manifest.",
                remedy="Pull or import the image again.",
                digest=manifest.image_digest,
            )
    table = ChunkTable(chunks)
    BlobMap(Superblock.parse(memoryview(index)), table)
    if table.content_bytes != manifest.content_bytes:
        raise InvalidInput(
            f"The manifest of image {manifest.image_digest[:16]} counts its bytes wrongly.",
            remedy="Pull or import the image again.",
            digest=manifest.image_digest,
        )


def _listed(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
