"""Where this room keeps things below ``images/``. Image ids are checked here, so no id is ever a path.

``images/<id>/`` holds ``image.json`` and ``rootfs/`` (for a user's folder or an index also the overlay's
``upper/`` and ``work/``, and ``lower``, a note of what it was made on). Names with a leading dot are ours:
``.staging/`` (being made or being removed), ``.locks/`` and ``.build/`` (the builder's storage: base images
and cached layers; may be deleted when no build runs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glowplug.types.errors import NotFound
from glowplug.types.paths import StateDir

IMAGE_ID = re.compile(r"im-[0-9a-f]{16}")


@dataclass(frozen=True)
class ImageFolders:
    """Paths of one state directory; creates nothing."""

    state: StateDir

    def image(self, image_id: str) -> Path:
        """The folder of a finished image. Raises NotFound for what cannot be an id."""
        if not IMAGE_ID.fullmatch(image_id):
            raise NotFound(
                f"There is no image {image_id!r}.",
                remedy="`glowplug image ls` lists the images of every node.",
                image_id=image_id,
            )
        return self.state.images / image_id

    @property
    def staging(self) -> Path:
        """One folder per image being made or removed; on the same filesystem, so a rename publishes."""
        return self.state.images / ".staging"

    @property
    def build_storage(self) -> Path:
        """Where the builder keeps base images and layers unless told otherwise."""
        return self.state.images / ".build"

    def lock(self, image_id: str) -> Path:
        """Held while the image is made or removed."""
        return self.state.images / ".locks" / image_id

    def mount_lock(self, image_id: str) -> Path:
        """Held while the image is mounted or unmounted."""
        return self.state.images / ".locks" / f"{image_id}.mount"

    def finished(self) -> list[str]:
        """Ids of all finished images, sorted."""
        if not self.state.images.is_dir():
            return []
        return sorted(entry.name for entry in self.state.images.iterdir() if IMAGE_ID.fullmatch(entry.name))
