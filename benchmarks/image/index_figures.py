"""What indexes cost: to build, to keep, to mount; and what twenty mounted images cost the daemon."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import machine
from bench_node import Node
from rounds import Sample, Samples, in_turns
from workshop import IMAGE, Workshop, add_variant

from glowplug.chunks.compression import compress
from glowplug.image.lazy.daemon_state import DaemonPaths, lock_owner

IMAGES = 20
FILES_READ = 200


def index_size(workshop: Workshop) -> Sample:
    """Bytes of an index per name in the tree, as it lies here and as it is transferred."""
    folder = workshop.full.folder(IMAGE)
    index, chunks = folder.index_path.read_bytes(), folder.chunks_path.read_bytes()
    entries = folder.manifest.entries
    return {
        "entries": entries,
        "content_mb": folder.manifest.content_bytes / 1e6,
        "raw_bytes_per_entry": (len(index) + len(chunks)) / entries,
        "sent_bytes_per_entry": (len(compress(index)) + len(compress(chunks))) / entries,
    }


def builds(workshop: Workshop, runs: int) -> Samples:
    """An import of the warm folder into an empty store, all of it durable at the end."""
    folder = workshop.folder / "build"

    def build() -> Sample:
        shutil.rmtree(folder, ignore_errors=True)
        machine.read_tree(workshop.root)
        node = Node(folder)
        used_s = time.process_time()
        result = node.build(workshop.root, IMAGE)
        used_s = time.process_time() - used_s
        node.ssd.close()
        shutil.rmtree(folder)
        return {
            "seconds": result.seconds,
            "mb_per_s": result.content_bytes / 1e6 / result.seconds,
            "cpu_s": used_s,
        }

    return in_turns("build", {"import of a warm folder": build}, runs)


def mounts(workshop: Workshop, runs: int) -> Samples:
    """A mount from the local index: through the daemon with nothing here, and from local packs."""
    node, lazy = workshop.full, Node(workshop.folder / "mount-node")
    source = node.folder(IMAGE)
    folder = lazy.catalog.add(
        source.manifest, source.index_path.read_bytes(), source.chunks_path.read_bytes()
    )
    lazy.daemon()

    def through_daemon() -> Sample:
        mounted = lazy.mounts.mount(folder.digest, direct=False)
        blob = lazy.client().stats().blobs[folder.digest]
        lazy.mounts.unmount(folder.digest)
        lazy.client().detach(folder.digest)
        return {"seconds": mounted.seconds, "chunks_read": blob.ssd_chunks + blob.fetched_chunks + blob.reads}

    def from_packs() -> Sample:
        mounted = node.mounts.mount(source.digest)
        assert mounted.kind == "graduated"
        node.mounts.unmount(source.digest)
        return {"seconds": mounted.seconds}

    try:
        return in_turns("mount", {"through daemon": through_daemon, "graduated": from_packs}, runs)
    finally:
        lazy.close()


def twenty(workshop: Workshop, runs: int) -> Samples:
    """Twenty images of this size mounted through one daemon: how long that takes, and its memory."""
    node = workshop.full
    digests = [add_variant(node, IMAGE, f"copy-{number}") for number in range(IMAGES)]

    def mount_all() -> Sample:
        node.forget_daemon()
        started_s = time.monotonic()
        paths = [node.mounts.mount(digest, direct=False).path for digest in digests]
        took_s = time.monotonic() - started_s
        mounted_mb = _daemon_mb(node)
        for path in paths:
            _read_some(path / workshop.root_venv)
        told = {"seconds": took_s, "daemon_mb": mounted_mb, "daemon_after_reads_mb": _daemon_mb(node)}
        node.unmount_all()
        return told

    try:
        return in_turns("20 images", {"through daemon": mount_all}, runs)
    finally:
        for number, digest in enumerate(digests):
            node.catalog.unname(f"copy-{number}")
            node.catalog.remove(digest)


def _daemon_mb(node: Node) -> float:
    paths = DaemonPaths(node.state)
    owners = (lock_owner(paths.holder_lock), lock_owner(paths.worker_lock))
    return sum(machine.resident_bytes(pid) for pid in owners if pid is not None) / 1e6


def _read_some(folder: Path) -> None:
    for number, file in enumerate(sorted(folder.rglob("*.py"))):
        if number == FILES_READ:
            return
        file.read_bytes()
