"""A folder of this machine as the origin of an image: as root sees it, links, devices, holes and all.

Looked through first, then read, both on a few threads. With a scan cache, files that did not change since
they were last read, and whose chunks the store still has, are not read again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from glowplug.chunks.chunk import Chunk
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Extent, Tree
from glowplug.image.job import Job
from glowplug.image.origin.folder_access import open_root
from glowplug.image.origin.folder_read import FolderReader
from glowplug.image.origin.folder_scan import FolderPolicy, FolderScan, FoundFile
from glowplug.image.origin.port import ContentSink
from glowplug.image.origin.scan_cache import ScanCache

SCAN_CACHE_NAME = ".scan-cache.db"  # below the folder of indexes


class FolderOrigin:
    """An :class:`~glowplug.image.origin.port.Origin`: everything below ``path``, which becomes the root.

    ``exclude`` are shell patterns, for names anywhere or, with a slash in them, for paths from the folder.
    With ``one_filesystem`` what is mounted below it is left out, but for the empty mount points.
    """

    def __init__(
        self,
        path: Path,
        *,
        exclude: Sequence[str] = (),
        one_filesystem: bool = True,
        cache: ScanCache | None = None,
        config: ImageConfig | None = None,
        workers: int | None = None,
    ) -> None:
        self._path = path
        self._policy = FolderPolicy(exclude, one_filesystem)
        self._cache = cache
        self._config = config or ImageConfig()
        self._workers = workers or min(4, os.cpu_count() or 1)

    def describe(self) -> str:
        """See :class:`~glowplug.image.origin.port.Origin`."""
        return f"folder {self._path}"

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """See :class:`~glowplug.image.origin.port.Origin`.

        Raises InvalidInput for what cannot be read, Conflict for files that are written to all the time.
        """
        started_s = job.clock.wall()
        root = open_root(os.fsencode(self._path))
        try:
            scan = FolderScan(root, self._policy, job).run(self._workers)
            recalled = self._recall(scan.files, sink)
            unread = [file for file, is_known in zip(scan.files, recalled, strict=True) if not is_known]
            FolderReader(root, self._policy, sink, job).read(unread, self._workers)
        finally:
            os.close(root)
        if self._cache is not None:
            known = (file.signature for file, is_known in zip(scan.files, recalled, strict=True) if is_known)
            self._cache.record(((file.signature, file.inode.extents) for file in unread), known, started_s)
        return Tree(scan.root), self._config

    def _recall(self, files: list[FoundFile], sink: ContentSink) -> list[bool]:
        """Give files that did not change their extents; tells for each whether it has them now."""
        if self._cache is None:
            return [False] * len(files)
        remembered = self._cache.recall([file.signature for file in files])
        lost = sink.missing(
            chunk for extents in remembered for extent in extents or () for chunk in extent.chunks
        )
        known = [extents is not None and not _uses(extents, lost) for extents in remembered]
        for file, extents, is_known in zip(files, remembered, known, strict=True):
            if extents is not None and is_known:
                file.inode.extents = extents
        return known


def _uses(extents: tuple[Extent, ...], chunks: set[Chunk]) -> bool:
    return bool(chunks) and any(chunk in chunks for extent in extents for chunk in extent.chunks)
