"""The content of a folder's files: the second half of reading one, on a few threads.

A file counts only if nothing about it changed while it was read; it is read again a few times, then refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.job import Job
from glowplug.image.origin.attributes import KeepXattr
from glowplug.image.origin.folder_access import (
    Changed,
    changing,
    data_ranges,
    describe,
    directory,
    regular_file,
    signature_of,
    steadily,
)
from glowplug.image.origin.folder_scan import FolderPolicy, FoundFile
from glowplug.image.origin.port import ContentSink
from glowplug.image.origin.progress import Meter
from glowplug.image.origin.workers import Workers
from glowplug.types.errors import InvalidInput

_STAGE = "reading files"
_BATCH_FILES = 256
_BATCH_BYTES = 4 << 20
_BLOCK_BYTES = 512  # of st_blocks, on every filesystem


class FolderReader:
    """Reads files that a scan found: their inodes get extents, and new attributes if those changed."""

    def __init__(self, root: int, policy: FolderPolicy, sink: ContentSink, job: Job) -> None:
        """``root`` is a descriptor of the folder."""
        self._root = root
        self._keep_xattr = policy.keep_xattr
        self._sink = sink
        self._job = job

    def read(self, files: Sequence[FoundFile], workers: int) -> None:
        """Read them all. Raises InvalidInput, Conflict, or as :meth:`Job.check`."""
        total_bytes = sum(file.signature.size_bytes for file in files)
        meter = Meter(self._job, _STAGE, total_bytes)
        with Workers[int](workers, self._job, _STAGE) as pool:
            for batch in _batches(files):
                pool.submit(partial(self._read_batch, batch))
            for read_bytes in pool.results():
                meter.add(read_bytes)

    def _read_batch(self, files: Sequence[FoundFile]) -> int:
        """Small files go to the sink together; returns how many bytes were read."""
        small: list[FoundFile] = []
        contents: list[bytes] = []
        for folder, group in groupby(files, key=lambda file: file.folder):
            with directory(self._root, folder) as parent:
                for file in group:
                    content = steadily(file.path, partial(self._read_file, parent, file))
                    if content is not None:
                        small.append(file)
                        contents.append(content)
        for file, extents in zip(small, self._sink.add_contents(contents), strict=True):
            file.inode.extents = extents
        return sum(file.signature.size_bytes for file in files)

    def _read_file(self, parent: int, file: FoundFile) -> bytes | None:
        """A small file's content; None for a larger one, which went to the sink. Raises Changed."""
        with regular_file(parent, file.name) as descriptor:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise Changed
            content = None
            if before.st_size <= CHUNK_BYTES:
                content = os.read(descriptor, before.st_size + 1)
                if len(content) != before.st_size:
                    raise Changed
            else:
                self._add_large(descriptor, file, before)
            if signature_of(os.fstat(descriptor)) != signature_of(before):
                raise Changed
            if signature_of(before) != file.signature:
                _renew(parent, file, before, self._keep_xattr)
            return content

    def _add_large(self, descriptor: int, file: FoundFile, before: os.stat_result) -> None:
        is_sparse = before.st_blocks * _BLOCK_BYTES < before.st_size
        ranges = data_ranges(descriptor, before.st_size) if is_sparse else None
        try:
            file.inode.extents = self._sink.add_file(descriptor, before.st_size, ranges)
        except InvalidInput as too_short:
            if os.fstat(descriptor).st_size != before.st_size:
                raise Changed from too_short
            raise


def _renew(parent: int, file: FoundFile, status: os.stat_result, keep: KeepXattr) -> None:
    """It changed between scan and reading: take it as it is now, unless other names mean the old one."""
    is_same_file = (status.st_dev, status.st_ino) == file.signature[:2]
    if file.has_other_names and not is_same_file:
        raise changing(file.path)
    fresh = describe(parent, file.name, status, keep)
    named = os.stat(file.name, dir_fd=parent, follow_symlinks=False)
    if signature_of(named) != signature_of(status):
        raise Changed
    inode = file.inode
    inode.mode, inode.uid, inode.gid, inode.mtime_ns = fresh.mode, fresh.uid, fresh.gid, fresh.mtime_ns
    inode.xattrs, inode.size_bytes = fresh.xattrs, fresh.size_bytes
    file.signature = signature_of(status)


def _batches(files: Sequence[FoundFile]) -> Iterator[list[FoundFile]]:
    """Small files by the hundred, each large one alone."""
    batch: list[FoundFile] = []
    batch_bytes = 0
    for file in files:
        size_bytes = file.signature.size_bytes
        if size_bytes > CHUNK_BYTES:
            yield [file]
            continue
        batch.append(file)
        batch_bytes += size_bytes
        if len(batch) >= _BATCH_FILES or batch_bytes >= _BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
