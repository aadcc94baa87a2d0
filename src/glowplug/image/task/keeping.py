"""``image verify`` and ``image gc``."""

from __future__ import annotations

from typing import Any

from glowplug.chunks.store import Pruned
from glowplug.image.index.catalog import Catalog
from glowplug.image.job import Job
from glowplug.image.node_store import open_region, open_ssd
from glowplug.image.task.turns import collecting
from glowplug.types.image import GcTask, VerifyTask
from glowplug.types.paths import StateDir

_GC_PIN = "gc:"


def verify(state: StateDir, task: VerifyTask, job: Job) -> dict[str, Any]:
    """``{"chunks", "bytes", "damaged"}``: hashed, and found damaged (these were dropped)."""
    table = None
    if task.image is not None:
        catalog = Catalog(state)
        folder = catalog.get(catalog.resolve(task.image))
        folder.verify()
        table = folder.table()
    with open_ssd(state) as ssd:
        report = ssd.verify(job.say, job.cancelled, table)
    return {"chunks": report.chunks, "bytes": report.bytes, "damaged": report.damaged}


def collect_garbage(state: StateDir, task: GcTask, job: Job) -> dict[str, Any]:
    """``{"freed_bytes", "removed_chunks"}``, of this node or of the region's packs."""
    if task.region:
        collected = open_region(state).gc(job.say)
        return {"freed_bytes": collected.freed_bytes, "removed_chunks": collected.removed_chunks}
    with open_ssd(state) as ssd, collecting(state):
        # What no index here has, and nobody pinned, goes.
        owners = []
        try:
            for folder in Catalog(state).list():
                owners.append(_GC_PIN + folder.digest)
                ssd.pin(owners[-1], folder.chunks_path)
            results = [ssd.prune(0)]
        finally:
            for owner in owners:
                ssd.unpin(owner)
        if task.budget_bytes is not None:
            results.append(ssd.prune(task.budget_bytes))
        leaked_bytes = ssd.gc()
    return {"freed_bytes": _freed(results) + leaked_bytes, "removed_chunks": _removed(results)}


def _freed(results: list[Pruned]) -> int:
    return sum(result.freed_bytes for result in results)


def _removed(results: list[Pruned]) -> int:
    return sum(result.removed_chunks for result in results)
