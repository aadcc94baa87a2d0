"""``image.json``: everything needed to mount an image, written once when it is finished.

Mounting must not resolve, probe or walk anything, so whatever that yields is kept here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from glowplug.image.index.manifest import Hash
from glowplug.types.errors import GlowplugError, NotFound
from glowplug.types.replica import ImageView
from glowplug.types.spec import ImageSpec, Spec

RECORD_NAME = "image.json"


class DamagedRecord(GlowplugError):
    """An ``image.json`` that cannot be read; asking for the image again makes it anew."""


class BindRecord(Spec):
    """One bind, as in :class:`glowplug.image.mount.Bind`."""

    source: str
    destination: str
    read_only: bool = True


class Lower(Spec):
    """A user's folder under the image's overlay; ``inode`` tells whether it is still the same folder."""

    path: str
    inode: int


class ImageRecord(Spec):
    """The content of ``image.json``."""

    version: Literal[1] = 1
    id: str
    spec: ImageSpec
    created_at: float
    owned_bytes: int
    lower: Lower | None = None
    index_digest: Hash | None = None  # of the index, for images that are mounted lazily
    content_bytes: int = 0
    binds: list[BindRecord] = []
    env: dict[str, str] = {}
    workdir: str = "/"
    python: str | None = None

    def view(self, *, is_in_use: bool) -> ImageView:
        """What others see of it."""
        return ImageView(
            id=self.id,
            kind=self.spec.kind,
            spec=self.spec,
            bytes=self.content_bytes or self.owned_bytes,
            digest=self.index_digest,
            created_at=self.created_at,
            in_use=is_in_use,
        )


def write_record(folder: Path, record: ImageRecord) -> None:
    """Write and fsync ``image.json`` and the folder that holds it."""
    with (folder / RECORD_NAME).open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the entries of ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(folder: Path, image_id: str) -> ImageRecord:
    """Read it back. Raises NotFound if there is none, DamagedRecord if it is not what was written."""
    try:
        text = (folder / RECORD_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise NotFound(
            f"There is no image {image_id}.",
            remedy="Deploy again to make it; `glowplug image ls` lists the images of every node.",
            image_id=image_id,
        ) from missing
    try:
        record = ImageRecord.model_validate_json(text)
    except ValidationError as problem:
        raise _damaged(folder, image_id, str(problem)) from problem
    if record.id != image_id:
        raise _damaged(folder, image_id, f"it belongs to {record.id}")
    return record


def _damaged(folder: Path, image_id: str, why: str) -> DamagedRecord:
    return DamagedRecord(
        f"{folder / RECORD_NAME} is damaged: {why}.",
        remedy="Deploy again to make the image anew.",
        image_id=image_id,
    )
