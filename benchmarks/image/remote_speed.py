"""Nothing is on this machine but the index: ``import torch`` from a distant store, beside other ways."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import machine
import peers
from bench_node import Node, job
from delayed_store import Counts, DelayedStore, download, serving
from rounds import Sample, Samples, in_turns
from workshop import IMAGE, ORDERED, Workshop

from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.region import Region
from glowplug.image import distribute


class EmptyNode:
    """A node whose image is known and whose cache is empty; its daemon runs, as on any node."""

    def __init__(self, folder: Path, image: str, store: DelayedStore) -> None:
        self.node = Node(folder, region=store.url)
        self._image = image
        self._store = store
        objects = HttpObjects(store.url)
        distribute.pull(image, Region(objects), self.node.catalog, job())
        objects.close()
        folder_of_image = self.node.folder(image)
        self.digest = folder_of_image.digest
        self._content_bytes = folder_of_image.manifest.content_bytes

    def start(self, command: list[str], *, with_trace: bool, is_recording: bool = False) -> Sample:
        """The first container on the node: mount, fetch ahead what was traced, run the command to its end."""
        node = self.node
        traces = node.folder(self._image).traces_path
        hidden = traces.with_name("traces.hidden")
        if not with_trace and traces.exists():
            traces.rename(hidden)
        try:
            node.forget_content()
            machine.drop_caches()
            before = self._store.counts()
            worker = node.client().ping().pid
            used_s, started_s = machine.processor_s(worker), time.monotonic()
            root = node.starts.mount(self.digest, command)
            mounted_s = time.monotonic() - started_s
            ran = machine.container(root, command)
            took_s = time.monotonic() - started_s
            used_s = machine.processor_s(worker) - used_s
        finally:
            if hidden.exists():
                hidden.rename(traces)
        asked = self._store.counts().since(before)
        blob = node.client().stats().blobs[self.digest]
        if is_recording:
            node.save_trace(self._image, command)
        node.unmount_all()
        return {
            "seconds": took_s,
            "mount_s": mounted_s,
            "cpu_s": ran.cpu_s,
            "daemon_cpu_s": used_s,
            "requests": asked.requests,
            "megabytes": asked.bytes / 1e6,
            "share_of_image": asked.bytes / self._content_bytes,
            "reads": blob.reads,
            "waited_for_fetch": blob.waited_for_fetch,
        }

    def record(self, command: list[str]) -> None:
        """Keep the trace of a first start, as the node does when its replica is ready."""
        self.node.forget_traces(self._image)
        self.start(command, with_trace=False, is_recording=True)

    def close(self) -> None:
        """End it."""
        self.node.close()


def empty_cache(
    workshop: Workshop, latency_ms: float, runs: int, package: str = "torch", *, with_peers: bool
) -> Samples:
    """All ways side by side, and native ext4 warm, which needs no store, as the measure of all."""
    command = workshop.importing(package)
    folder, mounts = workshop.folder / "empty", workshop.folder / "mounts"
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as owned:
        store = owned.enter_context(serving(workshop.tools, workshop.region, latency_ms))
        ordered_store = owned.enter_context(serving(workshop.tools, workshop.ordered_region, latency_ms))
        native = owned.enter_context(machine.bound(workshop.root, mounts / "native"))
        plain = EmptyNode(folder / "plain", IMAGE, store)
        owned.callback(plain.close)
        ordered = EmptyNode(folder / "ordered", ORDERED, ordered_store)
        owned.callback(ordered.close)
        plain.record(command)
        ordered.record(command)

        def native_warm() -> Sample:
            machine.container(native, command)
            machine.fill_memory()
            return machine.container(native, command)._asdict()

        cases: dict[str, Callable[[], Sample]] = {
            "native ext4, warm": native_warm,
            "with trace": lambda: plain.start(command, with_trace=True),
            "with trace, laid out by it": lambda: ordered.start(command, with_trace=True),
            "without trace": lambda: plain.start(command, with_trace=False),
        }
        slow = _peers(owned, workshop, latency_ms, folder, command) if with_peers else {}
        if not with_peers:  # who download the whole image need more than can be filled again in seconds
            owned.enter_context(machine.memory_left(machine.CONTAINER_BYTES))
        return in_turns(f"{package}, {latency_ms:g} ms away", cases | slow, runs)


def _peers(
    owned: ExitStack, workshop: Workshop, latency_ms: float, folder: Path, command: list[str]
) -> dict[str, Callable[[], Sample]]:
    """What others do: the whole image first, or each file when it is opened."""
    mounts = workshop.folder / "mounts"
    files = owned.enter_context(serving(workshop.tools, workshop.root, latency_ms))
    whole = owned.enter_context(serving(workshop.tools, workshop.erofs.parent, latency_ms))
    squashed = workshop.squashfs.name

    def download_first() -> Sample:
        machine.drop_caches(machine.CONTAINER_BYTES + workshop.erofs.stat().st_size)
        before, started_s = whole.counts(), time.monotonic()
        with peers.whole_image(whole, workshop.erofs.name, folder / "whole.erofs", mounts / "whole") as root:
            downloaded_s = time.monotonic() - started_s
            machine.container(root, command)
            took_s = time.monotonic() - started_s
        return _sample(took_s, whole, before) | {"download_s": downloaded_s}

    def download_squashfs() -> Sample:
        machine.drop_caches(machine.CONTAINER_BYTES + workshop.squashfs.stat().st_size)
        image = folder / "whole.squashfs"
        before, started_s = whole.counts(), time.monotonic()
        download(whole, squashed, image)
        downloaded_s = time.monotonic() - started_s
        with peers.squashfuse(image, mounts / "squashfs") as root:
            machine.container(root, command)
            took_s = time.monotonic() - started_s
        image.unlink()
        return _sample(took_s, whole, before) | {"download_s": downloaded_s}

    def file_at_a_time() -> Sample:
        machine.drop_caches()
        before, started_s = files.counts(), time.monotonic()
        with peers.whole_files(
            workshop.tools, workshop.root, files, folder / "files", mounts / "files"
        ) as root:
            machine.container(root, command)
            took_s = time.monotonic() - started_s
        return _sample(took_s, files, before)

    return {
        "whole image first (EROFS)": download_first,
        "whole image first (squashfs, squashfuse)": download_squashfs,
        "file-at-a-time FUSE": file_at_a_time,
    }


def _sample(took_s: float, store: DelayedStore, before: Counts) -> Sample:
    asked = store.counts().since(before)
    return {"seconds": took_s, "requests": asked.requests, "megabytes": asked.bytes / 1e6}
