"""``image import``, and what containers need to know of the result."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glowplug.chunks.chunk import Chunk
from glowplug.image.index.build import build_image
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.image_name import check_name
from glowplug.image.index.tree import Inode, Tree
from glowplug.image.inside import DEFAULT_PATH
from glowplug.image.job import Job
from glowplug.image.layout import ImageFolders
from glowplug.image.lazy import trace
from glowplug.image.node_store import ONLY_HERE, open_ssd
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.open import open_origin, open_registry
from glowplug.image.origin.scan_cache import ScanCache
from glowplug.image.task.turns import adding
from glowplug.types.errors import InvalidInput
from glowplug.types.image import DescribeTask, ImportTask, ResolveTask
from glowplug.types.paths import StateDir

SCAN_CACHE = ".scan-cache.db"
_MAX_LINKS = 40  # as the kernel
_EXECUTABLE = 0o111


def import_image(state: StateDir, task: ImportTask, job: Job) -> dict[str, Any]:
    """``{"digest", "entries", "content_bytes", "new_bytes", "seconds"}``."""
    if task.name is not None:
        check_name(task.name)
    catalog = Catalog(state)
    order = _order(catalog, task.order_by)
    builder = ImageFolders(state).build_storage
    with (
        adding(state),
        open_ssd(state) as ssd,
        tempfile.TemporaryDirectory(prefix="import-") as scratch,
    ):
        cache = ScanCache(state.indexes / SCAN_CACHE)
        origin = open_origin(task, scratch=Path(scratch), builder=builder, cache=cache)
        result = build_image(
            origin, ssd, catalog, job, order=order, clamp_to_s=task.clamp_to_s, name=task.name
        )
        folder = catalog.get(result.digest)
        if not folder.placement_path.exists():
            ssd.pin(ONLY_HERE + result.digest, folder.chunks_path)
    return asdict(result)


def resolve(task: ResolveTask, job: Job) -> dict[str, Any]:
    """``{"pinned": reference with its digest, "manifest": that digest, "platform"}``."""
    with tempfile.TemporaryDirectory(prefix="resolve-") as scratch:
        pinned = open_registry(task, Path(scratch)).pin(job)
    return {
        "pinned": str(pinned),
        "manifest": str(pinned.digest),
        "platform": task.platform or str(Platform.here()),
    }


def describe(state: StateDir, task: DescribeTask) -> dict[str, Any]:
    """``{"digest", "content_bytes", "config", "python"}``."""
    catalog = Catalog(state)
    folder = catalog.get(catalog.resolve(task.image))
    config = folder.manifest.config
    return {
        "digest": folder.digest,
        "content_bytes": folder.manifest.content_bytes,
        "config": config.model_dump(mode="json"),
        "python": find_python(folder.tree(), config.env.get("PATH", DEFAULT_PATH)),
    }


def find_python(tree: Tree, search_path: str) -> str | None:
    """The first ``python3`` (or ``python``) that a shell in the image would find."""
    folders = [folder for folder in search_path.split(":") if folder.startswith("/")]
    for name in ("python3", "python"):
        for folder in folders:
            path = f"{folder.rstrip('/')}/{name}"
            found = follow(tree, path.encode())
            if found is not None and found.is_regular and found.mode & _EXECUTABLE:
                return path
    return None


def follow(tree: Tree, path: bytes) -> Inode | None:
    """The inode that ``path`` leads to inside the tree, all links followed; None if to nowhere."""
    pending = [part for part in path.split(b"/") if part]
    walked = [tree.root]
    links = 0
    while pending:
        name = pending.pop(0)
        if name == b"..":
            walked = walked[:-1] or walked
            continue
        if name == b".":
            continue
        inode = walked[-1].children.get(name)
        if inode is None:
            return None
        if stat.S_ISLNK(inode.mode):
            links += 1
            if links > _MAX_LINKS:
                return None
            if inode.target.startswith(b"/"):
                walked = [tree.root]
            pending = [part for part in inode.target.split(b"/") if part] + pending
            continue
        walked.append(inode)
    return walked[-1]


def _order(catalog: Catalog, image: str | None) -> Sequence[Chunk] | None:
    """The chunks that an image's traces say are read first."""
    if image is None:
        return None
    folder = catalog.get(catalog.resolve(image))
    table = folder.table()
    found = trace.best(folder.path, [], table)
    if found is None:
        raise InvalidInput(
            f"{image} has no access trace to order by.",
            remedy="Start it once (or read what matters through `glowplug image mount`), then import again.",
            image=image,
        )
    return trace.order_for_layout(found, table)
