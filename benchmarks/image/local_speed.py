"""Everything is on this machine: Glowplug's mounts beside native ext4 and squashfuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import machine
import peers
from rounds import Sample, Samples, in_turns
from workshop import IMAGE, LAZY, Workshop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))

from bench_node import Node
from storage import sequential_read_bytes_per_s

RANDOM_READS = 20_000
RANDOM_BYTES = 4096
READERS = 8
LEFT_BYTES = 8 << 30  # for the file, twice, and something
BIG = "big"


@contextmanager
def roots(workshop: Workshop, *, with_squashfuse: bool) -> Iterator[dict[str, Path]]:
    """The same tree in each way of having it."""
    node, mounts = workshop.full, workshop.folder / "mounts"
    with ExitStack() as owned:
        found = {"native ext4": owned.enter_context(machine.bound(workshop.root, mounts / "native"))}
        graduated = node.mounts.mount(node.folder(IMAGE).digest)
        lazy = node.mounts.mount(node.folder(LAZY).digest, direct=False)
        assert (graduated.kind, lazy.kind) == ("graduated", "lazy"), (graduated, lazy)
        owned.callback(node.unmount_all)
        found |= {"graduated": graduated.path, "through daemon": lazy.path}
        if with_squashfuse:
            found["squashfuse"] = owned.enter_context(
                peers.squashfuse(workshop.squashfs, mounts / "squashfs")
            )
        yield found


def imports(workshop: Workshop, package: str, runs: int, *, with_squashfuse: bool) -> Samples:
    """Containers that import a package: with caches dropped, the next one on the node, and a third."""
    command = workshop.importing(package)

    def three(root: Path) -> Sample:
        machine.drop_caches()
        told: Sample = {}
        for turn in ("cold", "second", "warm"):
            if turn != "cold":
                machine.fill_memory()
            ran = machine.container(root, command)
            told |= {f"{turn}_s": ran.seconds, f"{turn}_cpu_s": ran.cpu_s}
        return told

    with (
        roots(workshop, with_squashfuse=with_squashfuse) as found,
        machine.memory_left(machine.CONTAINER_BYTES),
    ):
        cases = {name: partial(three, root) for name, root in found.items()}
        return in_turns(f"import {package}", cases, runs)


def whole_reads(workshop: Workshop, runs: int) -> Samples:
    """``tar`` of everything with caches dropped, and the page cache that it takes."""
    read_bytes = machine.tree_bytes(workshop.root)

    def read(root: Path) -> Sample:
        machine.drop_caches()
        before_bytes = machine.page_cache_bytes()
        seconds = machine.tar_s(root)
        cached_bytes = machine.page_cache_bytes() - before_bytes
        return {"seconds": seconds, "page_cache_ratio": cached_bytes / read_bytes}

    with roots(workshop, with_squashfuse=True) as found:
        cases = {name: partial(read, root) for name, root in found.items()}
        return in_turns("tar", cases, runs)


def file_reads(workshop: Workshop, runs: int) -> Samples:
    """A file of 2 GiB: in order, again, by 8 readers, and 4 KiB at random; cold and from page cache."""
    folder, node = workshop.big_folder, Node(workshop.folder / "big-node")
    if BIG not in node.catalog.names():
        node.build(folder, BIG)
    digest = node.folder(BIG).digest
    node.mounts.graduate(digest)
    native = folder / "file.bin"
    packs = sorted((node.state.chunks / "packs").iterdir())
    seeds = iter(range(1, 1 << 20))

    def read(file: Path, way: str, threads: int = 1) -> float:
        block, blocks = (RANDOM_BYTES, RANDOM_READS) if way == "random" else (1 << 20, 0)
        seconds, size_bytes = machine.read_file(
            workshop.tools.read_file, file, way, block, blocks, threads, next(seeds)
        )
        return size_bytes / 1e6 / seconds if way != "random" else size_bytes / RANDOM_BYTES / seconds

    def all_ways(file: Path, *behind: Path) -> Sample:
        told: Sample = {}
        machine.drop_caches()
        told["cold_mb_per_s"] = read(file, "sequential")
        told["page_cache_ratio"] = machine.cached_bytes(file, *behind) / file.stat().st_size
        told["again_mb_per_s"] = read(file, "sequential")
        told["random_warm_per_s"] = read(file, "random")
        for threads, suffix in ((1, ""), (READERS, "_8")):
            machine.drop_caches()
            told[f"random_cold{suffix}_per_s"] = read(file, "random", threads)
        machine.drop_caches()
        told["readers_8_cold_mb_per_s"] = read(file, "sequential", READERS)
        told["readers_8_again_mb_per_s"] = read(file, "sequential", READERS)
        return told

    def mounted(*, direct: bool) -> Sample:
        path = node.mounts.mount(digest, direct=direct).path
        try:
            behind = (
                [node.state.chunks / "packs"] if direct else [node.state.chunks / "packs", node.blob(BIG)]
            )
            told = all_ways(path / "file.bin", *behind)
            if not direct:
                node.mounts.unmount(digest)  # takes its pages along, and leaves those of the packs
                for pack in packs:
                    machine.read_file(workshop.tools.read_file, pack, "sequential", 1 << 20, 0, 1, 0)
                path = node.mounts.mount(digest, direct=False).path
                machine.fill_memory()
                told["from_cached_chunks_mb_per_s"] = read(path / "file.bin", "sequential")
            return told
        finally:
            node.mounts.unmount(digest)

    try:
        with machine.memory_left(LEFT_BYTES):
            return in_turns(
                "file",
                {
                    "disk (O_DIRECT)": lambda: {"cold_mb_per_s": sequential_read_bytes_per_s(native) / 1e6},
                    "native ext4": lambda: all_ways(native),
                    "graduated": lambda: mounted(direct=True),
                    "through daemon": lambda: mounted(direct=False),
                },
                runs,
            )
    finally:
        node.close()
