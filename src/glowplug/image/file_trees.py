"""Files that are no image but are kept as one: flat folders, by digest, in the same store and mounts.

A snapshot's memory is such a folder. It gets an index like an image (so that dedup, tiers, verification,
prefetch and garbage collection are the image's own), with a label in its configuration that tells the two
apart. What is read of it when it is used is known before: every file, whole, the small ones first. So its
access trace is written when it is made, and its first mount is as good as any later one.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.chunks.cutting import is_memory
from glowplug.chunks.objects import Objects
from glowplug.chunks.region_leases import Lease
from glowplug.chunks.remote_settings import RemoteSettings
from glowplug.chunks.ssd import SsdStore
from glowplug.image import distribute
from glowplug.image.index.build import build_image
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.image.job import Job
from glowplug.image.lazy import trace
from glowplug.image.lazy.starts import SSD_TIER, LazyStarts
from glowplug.image.node_store import open_region
from glowplug.image.origin.port import ContentSink
from glowplug.image.region_trees import KIND_LABEL, CollectedTrees, collect
from glowplug.image.task.turns import adding, collecting
from glowplug.image.task_runner import TaskRunner
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.content import ContentUsage, Fetching, KeptFiles, TierRead
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, NotFound
from glowplug.types.image import PushTask
from glowplug.types.paths import StateDir

_log = logging.getLogger(__name__)

KEEP_TIMEOUT_S = 3600.0
ONLY_HERE = "files:"
"""Owner of the pin that keeps what is in no region: with the digest behind it."""

_READING = ("read-all-files",)  # the "command" whose trace says what is read


def is_file_tree(folder: IndexFolder) -> bool:
    """Whether an index is of files kept here, and no image that a container could start from."""
    return KIND_LABEL in folder.manifest.config.labels


class FileTrees:
    """The kept files of one node. Safe from several threads and processes."""

    def __init__(
        self,
        state: StateDir,
        ssd: SsdStore,
        catalog: Catalog,
        starts: LazyStarts,
        kind: str = "snapshot",
        clock: Clock | None = None,
    ) -> None:
        self._state = state
        self._ssd = ssd
        self._catalog = catalog
        self._starts = starts
        self._kind = kind
        self._clock = clock or SystemClock()
        self._tasks = TaskRunner(state)

    # --- keeping (glowplug.snapshot.content.SnapshotContent) ---

    def capture_folder(self, staged: Path, expected_bytes: int) -> AbstractContextManager[Path]:
        """Files to be kept are written where they are staged."""
        return nullcontext(staged)

    def keep(
        self, folder: Path, names: Sequence[str], cuts: Mapping[str, Sequence[int]] | None = None
    ) -> KeptFiles:
        """Take over these regular files, durably.

        Raises ResourceExhausted, or Conflict while garbage is collected.
        """
        job = Job(lambda _text, _fraction: None, self._clock, self._clock.monotonic() + KEEP_TIMEOUT_S)
        with adding(self._state):
            built = build_image(
                _FlatFolder(folder, names, self._kind, cuts or {}), self._ssd, self._catalog, job
            )
            index = self._catalog.get(built.digest)
            self._ssd.pin(ONLY_HERE + built.digest, index.chunks_path)
        self._note_reading(index)
        self._starts.graduate(index.digest)
        return KeptFiles(built.digest, built.content_bytes - built.new_bytes)

    def using(self, digest: str) -> AbstractContextManager[None]:
        """What :meth:`open` gives stays until :meth:`drop`."""
        return nullcontext()

    def open(self, digest: str) -> Path:
        """A read-only folder with these files. Raises NotFound, InvalidInput, Unavailable, SystemUnfit."""
        return self._starts.mount(digest, _READING)

    def drop(self, digest: str) -> None:
        """Forget it and free what nothing else needs. Raises Conflict while in use."""
        self._starts.unmount(digest)
        try:
            chunks = set(self._catalog.get(digest).table())
        except (NotFound, InvalidInput):
            chunks = set()
        with suppress(NotFound):
            self._catalog.remove(digest)
        self._ssd.unpin(ONLY_HERE + digest)
        self._starts.sweep()  # releases what the mount from packs held
        with suppress(Conflict), collecting(self._state):  # else `image gc` frees it
            for other in self._catalog.list():
                chunks.difference_update(other.table())
            self._ssd.remove(chunks)

    def drop_damage(self, digest: str) -> bool:
        """Forget the wrong bytes; whether the rest is everything, or can be completed from the region."""
        try:
            index = self._catalog.get(digest)
            index.verify()
        except (NotFound, InvalidInput) as problem:
            _log.warning("%s", problem.message)
            return False
        with suppress(Conflict):  # then it is read on through the mount that there is
            self._starts.unmount(digest)
        table = index.table()
        report = self._ssd.verify(only=table)
        self._starts.read_anew(digest)
        if report.damaged:
            _log.error("%d chunks of %s were damaged on this disk", report.damaged, digest[:16])
        return not self._ssd.missing(table) or self._is_in_region(index)

    def digests(self) -> set[str]:
        """All that are kept, damaged ones excepted."""
        return {index.digest for index in self._catalog.list() if self._is_ours(index)}

    def usage(self, digest: str) -> ContentUsage:
        """Where its bytes are."""
        try:
            index = self._catalog.get(digest)
            usage = self._ssd.usage(index.table())
        except GlowplugError:  # removed meanwhile, or damaged
            return ContentUsage()
        missing_bytes = usage.total_bytes - usage.bytes
        return ContentUsage(usage.bytes, missing_bytes, usage.is_complete, self._is_in_region(index))

    def fetched(self, digest: str) -> dict[str, TierRead]:
        """What the daemon fetched of it since it was attached, by tier; nothing before it is mounted.

        What was begun when it was pulled counts for the restore that it was begun for.
        """
        use = self._starts.use(digest)
        return {tier: read for tier, read in use.reads.items() if use.kind and tier != SSD_TIER}

    def chunks(self, digest: str) -> int:
        """How many chunks its files are in."""
        try:
            return len(self._catalog.get(digest).table())
        except (NotFound, InvalidInput):  # removed meanwhile, or damaged
            return 0

    def note_use(self, digest: str) -> None:
        """It was used just now. (The kernel reads a mounted one past us, so nobody else notices.)"""
        with suppress(NotFound, InvalidInput):  # removed meanwhile
            self._ssd.touch(chunk.id for chunk in self._catalog.get(digest).table())

    def fetching(self) -> Fetching:
        """What comes from other machines now."""
        return self._starts.fetching()

    def give_up(self, digest: str) -> None:
        """Fetch no more of it, and fail the reads that wait for that."""
        self._starts.give_up(digest)

    # --- between machines ---

    def push(self, digest: str, job: Job) -> dict[str, Any]:
        """Bring it to the region: as ``image push``. From then on its bytes here are a cache's."""
        result = self._tasks.run(PushTask(image=digest), job)
        self._ssd.unpin(ONLY_HERE + digest)
        return result

    def pull(self, digest: str, region: Objects, job: Job, *, is_wanted_now: bool = False) -> None:
        """Have its index here; the bytes come when they are read. Raises NotFound, InvalidInput ..

        If ``is_wanted_now``, they begin to come at once. In this process, unlike an image's: a cold start may
        wait for it, and a process takes half a second.
        """
        distribute.pull(digest, region, self._catalog, job)
        index = self._catalog.get(digest)
        if not self._is_ours(index):
            raise InvalidInput(
                f"{digest[:16]} is no {self._kind}.", remedy="Push the snapshot again.", digest=digest
            )
        self._starts.refresh(digest)
        self._note_reading(index)
        if is_wanted_now:
            self._starts.fetch_ahead(digest, _READING)
        self._starts.graduate(digest)  # where all of it is here

    @contextmanager
    def pushing(self) -> Iterator[Lease]:
        """Nothing in the region is removed inside. Hold this until something there refers to what was pushed.

        Raises Conflict while garbage is collected for longer than a minute.
        """
        with closing(open_region(self._state)) as region, region.pushing() as lease:
            yield lease

    def collect_in_region(self, needed: Callable[[], set[str]], job: Job, grace_s: float) -> CollectedTrees:
        """Remove from the region what nobody needed for so long. Raises Conflict while somebody pushes."""
        with closing(open_region(self._state)) as region:
            return collect(region, self._kind, needed, job, self._clock, grace_s)

    def remove_from_region(self, digest: str, job: Job) -> None:
        """Forget it there; its packs go with the region's garbage. Raises NotFound, Conflict."""
        with closing(open_region(self._state)) as region:
            distribute.remove(digest, region, job)

    def prefetch(self, digest: str, job: Job) -> int:
        """Fetch all bytes that are not here; how many that were."""
        return int(self._starts.prefetch(digest, job, everything=True)["bytes"])

    def _note_reading(self, index: IndexFolder) -> None:
        """Write the trace that says what a restore reads, in which order."""
        key = trace.key_of(_READING)
        if not (index.traces_path / f"{key}.json").exists():
            trace.save(index.path, key, _READING, _reading_order(index))

    def _is_ours(self, index: IndexFolder) -> bool:
        return index.manifest.config.labels.get(KIND_LABEL) == self._kind

    def _is_in_region(self, index: IndexFolder) -> bool:
        return index.placement_path.exists() and RemoteSettings.from_environment().objects() is not None


@dataclass(frozen=True)
class _FlatFolder:
    """An :class:`~glowplug.image.origin.port.Origin`: some files of a folder, without owners and times."""

    path: Path
    names: Sequence[str]
    kind: str
    cuts: Mapping[str, Sequence[int]]

    def describe(self) -> str:
        return f"the {self.kind} in {self.path}"

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        root = Inode(stat.S_IFDIR | 0o700)
        for name in self.names:
            job.check("reading files")
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                size_bytes = os.fstat(descriptor).st_size
                extents = self._add(sink, name, descriptor, size_bytes) if size_bytes else ()
            finally:
                os.close(descriptor)
            root.children[name.encode()] = Inode(
                stat.S_IFREG | 0o600,
                size_bytes=size_bytes,
                extents=extents,
                is_cut_at_pages=is_memory(size_bytes) and bool(extents),
            )
        return Tree(root), ImageConfig(labels={KIND_LABEL: self.kind})

    def _add(self, sink: ContentSink, name: str, descriptor: int, size_bytes: int) -> tuple[Extent, ...]:
        if not is_memory(size_bytes):
            return sink.add_file(descriptor, size_bytes)
        return sink.add_pages(descriptor, size_bytes, self.cuts.get(name))


def _reading_order(index: IndexFolder) -> list[int]:
    """Chunks as they are read: whole files, the smallest first."""
    position = {chunk.id: number for number, chunk in enumerate(index.table())}
    files = sorted(index.tree().root.children.values(), key=lambda inode: inode.size_bytes)
    return [position[chunk.id] for file in files for extent in file.extents for chunk in extent.chunks]
