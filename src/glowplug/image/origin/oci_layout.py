"""An image in an OCI layout: a folder of blobs named by their digests, as ``skopeo`` writes it.

The folder is not trusted. A blob's place is made from its digest alone, links are not followed, and what lies
there counts only if it has that digest.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.foreign_layer import fetch_foreign
from glowplug.image.origin.http_session import Pace, Session
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.oci import find_image, read_image
from glowplug.image.origin.oci_config import MAX_CONFIG_BYTES
from glowplug.image.origin.oci_manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    Index,
    parse_index,
)
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.port import ByteStream, ContentSink
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import InvalidInput, NotFound

MAX_MARK_BYTES = 64 << 10
_LISTED_TAGS = 20


class LayoutOrigin:
    """An :class:`~glowplug.image.origin.port.Origin`: an image in an OCI layout folder.

    Without a tag, its only one. ``scratch`` is for foreign layers, which lie elsewhere; the network is used
    for nothing else.
    """

    def __init__(
        self,
        folder: Path,
        tag: str | None = None,
        *,
        scratch: Path,
        platform: Platform | None = None,
        environ: Mapping[str, str] | None = None,
        pace: Pace | None = None,
        patience: Patience | None = None,
        limits: ArchiveLimits | None = None,
    ) -> None:
        self._folder = folder
        self._tag = tag
        self._platform = platform or Platform.here()
        web = Session(os.environ if environ is None else environ, pace or Pace())
        self._blobs = _LayoutBlobs(folder, scratch, web, patience or Patience())
        self._limits = limits

    def describe(self) -> str:
        """See :class:`~glowplug.image.origin.port.Origin`."""
        return f"OCI layout {self._folder}" + (f", {self._tag}" if self._tag is not None else "")

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """See :class:`~glowplug.image.origin.port.Origin`. Raises NotFound and InvalidInput."""
        _check_mark(_read_file(self._folder / "oci-layout", MAX_MARK_BYTES), self._folder)
        index = parse_index(_read_file(self._folder / "index.json", MAX_DOCUMENT_BYTES))
        top = Index(manifests=_tagged(index.manifests, self._tag, self._folder))
        image = find_image(top, self._blobs, self._platform, job)
        return read_image(image, self._blobs, sink, job, self._limits)


@dataclass(frozen=True)
class _LayoutBlobs:
    """:class:`~glowplug.image.origin.oci.Blobs` of a folder."""

    folder: Path
    scratch: Path
    web: Session
    patience: Patience

    def manifest(self, descriptor: Descriptor, job: Job) -> bytes:
        """See :class:`~glowplug.image.origin.oci.Blobs`."""
        return self._document(descriptor, MAX_DOCUMENT_BYTES, "the image's manifest", job)

    def config(self, descriptor: Descriptor, job: Job) -> bytes:
        """See :class:`~glowplug.image.origin.oci.Blobs`."""
        return self._document(descriptor, MAX_CONFIG_BYTES, "the image's configuration", job)

    @contextmanager
    def layers(self, descriptors: Sequence[Descriptor], job: Job) -> Iterator[Iterator[ByteStream]]:
        """See :class:`~glowplug.image.origin.oci.Blobs`."""
        yield self._in_order(descriptors, job)

    def _document(self, descriptor: Descriptor, limit_bytes: int, what: str, job: Job) -> bytes:
        job.check("reading an OCI layout")
        data = _read_file(self._path(descriptor), limit_bytes)
        descriptor.digest.verify(data, what)
        return data

    def _in_order(self, descriptors: Sequence[Descriptor], job: Job) -> Iterator[ByteStream]:
        for descriptor in descriptors:
            try:
                file = _open_file(self._path(descriptor))
            except NotFound:
                if not descriptor.is_foreign or not descriptor.urls:
                    raise
                with self._fetched(descriptor, job) as fetched:
                    yield fetched
            else:
                with file:
                    yield file

    @contextmanager
    def _fetched(self, descriptor: Descriptor, job: Job) -> Iterator[ByteStream]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.scratch) as file, self.web.another() as session:
            fetch_foreign(descriptor, file, session, self.patience, job)
            file.seek(0)
            yield file

    def _path(self, descriptor: Descriptor) -> Path:
        digest = descriptor.digest
        return self.folder / "blobs" / digest.algorithm / digest.hex


class _Mark(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: str = Field(alias="imageLayoutVersion", max_length=20)


def _check_mark(data: bytes, folder: Path) -> None:
    try:
        version = _Mark.model_validate_json(data).version
    except ValidationError:
        version = ""
    if not version.startswith("1."):
        raise InvalidInput(
            f"{folder} is not an OCI layout of a version that is known.",
            remedy="Write one with `skopeo copy .. oci:FOLDER` or `buildah push .. oci:FOLDER`.",
        )


def _tagged(images: list[Descriptor], tag: str | None, folder: Path) -> list[Descriptor]:
    tags = sorted({image.ref_name for image in images if image.ref_name})
    listed = ", ".join(tags[:_LISTED_TAGS])
    if tag is not None:
        chosen = [image for image in images if image.ref_name == tag]
        if not chosen:
            raise NotFound(
                f"{folder} has no image {tag!r}; it has {listed or 'none with a name'}.",
                remedy="Write oci:FOLDER:TAG with one of them.",
                tags=tags[:_LISTED_TAGS],
            )
        return chosen
    if len({image.ref_name for image in images}) > 1:
        raise InvalidInput(
            f"{folder} has several images: {listed}.",
            remedy="Write oci:FOLDER:TAG with one of them.",
            tags=tags[:_LISTED_TAGS],
        )
    return images


def _read_file(path: Path, limit_bytes: int) -> bytes:
    with _open_file(path) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise InvalidInput(
            f"{path} is longer than {limit_bytes} bytes.", remedy="Check that the folder is an OCI layout."
        )
    return data


def _open_file(path: Path) -> BinaryIO:
    """Never blocks, never follows a link. Raises NotFound and InvalidInput."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as missing:
        raise NotFound(
            f"The OCI layout lacks {path}.", remedy="Copy the image again, whole.", path=str(path)
        ) from missing
    except OSError as problem:
        raise InvalidInput(
            f"{path} cannot be read: {problem.strerror}.",
            remedy="An OCI layout has plain files only, no links; copy it with `cp -rL`.",
            path=str(path),
        ) from problem
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise InvalidInput(f"{path} is not a file.", remedy="Copy the image again, whole.", path=str(path))
    return file
