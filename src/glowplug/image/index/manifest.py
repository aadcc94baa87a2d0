"""``manifest.json``: what an image is, and the digest that covers everything of it.

The digest is the BLAKE3 (64 hex digits) of the manifest's canonical JSON (sorted keys, no spaces, UTF-8). The
manifest holds the hashes of the other two files, so equal digests mean equal images, bit for bit. It holds no
time and no name: two builds of the same tree have one digest.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import blake3
from pydantic import Field, ValidationError
from typing_extensions import Buffer

from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import Spec

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MAX_MANIFEST_BYTES = 1 << 20


class ImageConfig(Spec):
    """What a container of the image starts with unless told otherwise; as in an OCI image's config."""

    env: dict[str, str] = {}
    entrypoint: list[str] = []
    cmd: list[str] = []
    workdir: str = "/"
    user: str = ""
    labels: dict[str, str] = {}
    architecture: str = "amd64"


class FileDigest(Spec):
    """Length and BLAKE3 of a file that belongs to the image."""

    size_bytes: int = Field(ge=0)
    blake3: Hash

    @classmethod
    def of(cls, data: Buffer) -> FileDigest:
        """Of a file with this content."""
        view = memoryview(data)
        return cls(size_bytes=view.nbytes, blake3=blake3.blake3(view).hexdigest())


class ImageManifest(Spec):
    """The content of ``manifest.json``."""

    version: Literal[1] = 1
    index: FileDigest  # index.erofs
    chunks: FileDigest  # chunks.bin
    entries: int = Field(ge=1)  # names in the tree, the root among them
    content_bytes: int = Field(ge=0)  # of all distinct chunks
    config: ImageConfig = ImageConfig()

    @classmethod
    def of(cls, index: Buffer, chunks: bytes, entries: int, config: ImageConfig) -> ImageManifest:
        """The manifest of an image with these two files; ``entries`` counts the names in its tree."""
        return cls(
            index=FileDigest.of(index),
            chunks=FileDigest.of(chunks),
            entries=entries,
            content_bytes=ChunkTable(chunks).content_bytes,
            config=config,
        )

    def canonical(self) -> bytes:
        """The bytes of ``manifest.json``."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @property
    def image_digest(self) -> str:
        """The image's digest."""
        return blake3.blake3(self.canonical()).hexdigest()

    @classmethod
    def parse(cls, data: bytes, digest: str | None = None) -> ImageManifest:
        """Read it back; with ``digest`` also check that it is that image's. Raises InvalidInput."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise _damaged("it is too long")
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as problem:
            raise _damaged(str(problem)) from problem
        if manifest.canonical() != data:
            raise _damaged("it is not in canonical form")
        if digest is not None and manifest.image_digest != digest:
            raise _damaged(f"it is of image {manifest.image_digest[:16]}, not of {digest[:16]}")
        return manifest


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(f"This is not an image manifest: {why}.", remedy="Pull or import the image again.")
