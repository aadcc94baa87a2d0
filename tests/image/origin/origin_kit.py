"""What tests of origins share: a store that can be looked into, a job, and trees in a form that compares."""

from __future__ import annotations

import time
from collections.abc import Iterable

from typing_extensions import Buffer

from glowplug.chunks.chunk import Chunk
from glowplug.image.index.tree import Inode, Tree
from glowplug.image.job import Job
from glowplug.image.origin.port import Origin
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.clock import ManualClock, SystemClock

PATIENCE_S = 120.0
LATER_S = 3600.0


class OpenStore:
    """A WriteStore that shows what it holds and what was asked of it."""

    tier = "memory"

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self.put_chunks: list[Chunk] = []
        self.flushed = 0

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        if chunk.id not in self.bodies:
            raise chunk.missing(self.tier)
        return self.bodies[chunk.id]

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        return [chunk for chunk in dict.fromkeys(chunks) if chunk.id not in self.bodies]

    def put(self, chunk: Chunk, data: Buffer) -> None:
        chunk.verify(data, self.tier)
        self.put_chunks.append(chunk)
        self.bodies[chunk.id] = bytes(data)

    def flush(self) -> None:
        self.flushed += 1

    def content(self, inode: Inode, limit_bytes: int = 64 << 20) -> bytes:
        """A file as a reader of the image would see it."""
        assert inode.size_bytes <= limit_bytes
        content = bytearray(inode.size_bytes)
        for extent in inode.extents:
            at = extent.offset
            for chunk in extent.chunks:
                content[at : at + chunk.size_bytes] = self.bodies[chunk.id]
                at += chunk.size_bytes
        assert len(content) == inode.size_bytes
        return bytes(content)


def a_job(said: list[str] | None = None) -> Job:
    clock = SystemClock()
    return Job(
        lambda text, _: said.append(text) if said is not None else None, clock, clock.monotonic() + PATIENCE_S
    )


def a_later_job() -> Job:
    """A job in an hour, to which everything that was written until now has long been left alone."""
    clock = ManualClock(time.time() + LATER_S)
    return Job(lambda _text, _fraction: None, clock, clock.monotonic() + PATIENCE_S)


def read(origin: Origin, store: OpenStore | None = None, job: Job | None = None) -> tuple[Tree, OpenStore]:
    store = store or OpenStore()
    with ChunkSink(store) as sink:
        tree, _ = origin.read(sink, job or a_job())
    tree.check()
    return tree, store


def paths(tree: Tree) -> list[bytes]:
    return [path for path, _ in tree.walk()][1:]


def at(tree: Tree, path: bytes) -> Inode:
    inode = tree.lookup(path)
    assert inode is not None, path
    return inode
