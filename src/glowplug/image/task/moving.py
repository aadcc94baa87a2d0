"""``image push`` and ``image pull``."""

from __future__ import annotations

from typing import Any

from glowplug.image import distribute
from glowplug.image.index.catalog import Catalog
from glowplug.image.job import Job
from glowplug.image.node_store import ONLY_HERE, open_region, open_ssd
from glowplug.types.image import PullTask, PushTask
from glowplug.types.paths import StateDir


def push(state: StateDir, task: PushTask, job: Job) -> dict[str, Any]:
    """``{"digest", "sent_bytes", "skipped_bytes", "packs"}``."""
    catalog = Catalog(state)
    folder = catalog.get(catalog.resolve(task.image))
    with open_ssd(state) as ssd:
        name = task.name or task.image
        result = distribute.push(folder, name, open_region(state), ssd, job, task.compress)
        ssd.unpin(ONLY_HERE + folder.digest)
        return result


def pull(state: StateDir, task: PullTask, job: Job) -> dict[str, Any]:
    """``{"digest", "bytes"}``: the index is here then; its content is not, unless asked for."""
    return distribute.pull(task.image, open_region(state), Catalog(state), job)
