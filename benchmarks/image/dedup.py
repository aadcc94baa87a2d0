"""Two images that differ by one pip package: how much of what they could share they do share.

Both are built by ``Image.pip_install`` from scratch, layers and all, so nothing is equal because it was
copied. What they could share is all content of the smaller one: the larger one installs all of that, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench_node import Node, job
from rounds import Sample

from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.image import distribute
from glowplug.image.store import ImageStore
from glowplug.types.spec import BuildImage, BuildStep

PACKAGES = ("torch==2.13.0", "numpy", "requests", "transformers")
ONE_MORE = "einops"


def dedup(folder: Path) -> Sample:
    """Build both, push both, and count."""
    shutil.rmtree(folder, ignore_errors=True)
    node = Node(folder / "node")
    node.state.create()
    try:
        store = ImageStore(node.state)
        sizes: list[int] = []
        digests: list[str] = []
        for packages in (PACKAGES, (*PACKAGES, ONE_MORE)):
            before = node.ssd.stats().used_bytes
            image = store.ensure(BuildImage(steps=[BuildStep(op="pip", args=list(packages))]), _quiet)
            digest = store.get(image.id).digest
            assert digest is not None
            digests.append(digest)
            node.ssd.flush()
            sizes.append(node.ssd.stats().used_bytes - before)
        smaller, larger = (node.catalog.get(digest) for digest in digests)
        tables = [set(found.table()) for found in (smaller, larger)]
        shared_bytes = sum(chunk.size_bytes for chunk in tables[0] & tables[1])
        could_bytes = smaller.manifest.content_bytes
        pushed = _push_both(node, folder / "region", digests)
        return {
            "smaller_mb": could_bytes / 1e6,
            "larger_mb": larger.manifest.content_bytes / 1e6,
            "shared_mb": shared_bytes / 1e6,
            "shared_of_possible": shared_bytes / could_bytes,
            "second_on_ssd_mb": sizes[1] / 1e6,
            "second_pushed_mb": pushed["sent_bytes"] / 1e6,
            "pushed_shared_of_possible": pushed["skipped_bytes"] / could_bytes,
        }
    finally:
        node.close()


def _push_both(node: Node, place: Path, digests: list[str]) -> dict[str, int]:
    place.mkdir()
    region = Region(ObstoreObjects(str(place)))
    pushed = [
        distribute.push(node.catalog.get(digest), f"image-{number}", region, node.ssd, job())
        for number, digest in enumerate(digests)
    ]
    region.close()
    return pushed[1]


def _quiet(_text: str, _fraction: float | None) -> None:
    """Builds talk."""
