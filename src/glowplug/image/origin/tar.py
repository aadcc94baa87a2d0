"""A tar archive as the origin of an image, and one tar archive as a layer upon others.

Nothing is unpacked to disk: entries go to a :class:`~glowplug.image.origin.confine.TreeBuilder`, content to
the sink, as the archive streams by once.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Inode, Tree
from glowplug.image.job import Job
from glowplug.image.origin.compressed import Unpacked
from glowplug.image.origin.confine import TreeBuilder, refused
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.port import ByteStream, ContentSink
from glowplug.image.origin.progress import Meter
from glowplug.image.origin.tar_entries import Entry, read_entries
from glowplug.types.errors import InvalidInput, NotFound

_BATCH_FILES = 256
_BATCH_BYTES = 4 << 20
_STAGE = "reading the archive"
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_BOOKKEEPING = b".wh..wh."  # what aufs kept in its layers: no files of the image


def apply_tar(
    stream: ByteStream,
    builder: TreeBuilder,
    sink: ContentSink,
    limits: ArchiveLimits,
    job: Job,
    *,
    whiteouts: bool,
) -> None:
    """Add an archive, compressed in any way, to ``builder`` as its next layer; its content goes to ``sink``.

    ``stream`` is read to its very end, so that a hash over it covers everything. With ``whiteouts`` it is a
    layer of an OCI image: ``.wh.`` names take away from earlier layers, and an archive that just stops
    between two entries is taken for whole, because the caller checks its digest. Raises InvalidInput.
    """
    unpacked = Unpacked(_Watched(stream, job), limits)
    builder.begin_layer()
    batch = _Batch(sink)
    for entry in read_entries(unpacked, may_just_stop=whiteouts):
        if not (whiteouts and _apply_whiteout(entry.path, builder)):
            _add(entry, builder, sink, batch)
    batch.flush()
    unpacked.drain()


class TarOrigin:
    """An :class:`~glowplug.image.origin.port.Origin`: a tar file here, or a stream of one."""

    def __init__(
        self,
        source: Path | ByteStream,
        *,
        limits: ArchiveLimits | None = None,
        config: ImageConfig | None = None,
    ) -> None:
        self._source = source
        self._limits = limits or ArchiveLimits()
        self._config = config or ImageConfig()

    def describe(self) -> str:
        """See :class:`~glowplug.image.origin.port.Origin`."""
        return f"archive {self._source}" if isinstance(self._source, Path) else "an archive"

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """See :class:`~glowplug.image.origin.port.Origin`. Raises NotFound and InvalidInput."""
        builder = TreeBuilder(self._limits)
        if isinstance(self._source, Path):
            with os.fdopen(_open_archive(self._source), "rb", buffering=0) as file:
                meter = Meter(job, _STAGE, os.fstat(file.fileno()).st_size)
                apply_tar(_Metered(file, meter), builder, sink, self._limits, job, whiteouts=False)
        else:
            metered = _Metered(self._source, Meter(job, _STAGE))
            apply_tar(metered, builder, sink, self._limits, job, whiteouts=False)
        return builder.finish(), self._config


class _Watched:
    """A stream that stops giving when the job is over."""

    def __init__(self, stream: ByteStream, job: Job) -> None:
        self._stream = stream
        self._job = job

    def read(self, size: int, /) -> bytes:
        self._job.check(_STAGE)
        return self._stream.read(size)


class _Metered:
    """A stream that reports what went through it."""

    def __init__(self, stream: ByteStream, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._meter.add(len(data))
        return data


class _Batch:
    """Small files on their way to the sink, which takes many at once for little more than one."""

    def __init__(self, sink: ContentSink) -> None:
        self._sink = sink
        self._inodes: list[Inode] = []
        self._contents: list[bytes] = []
        self._bytes = 0

    def add(self, inode: Inode, content: bytes) -> None:
        self._inodes.append(inode)
        self._contents.append(content)
        self._bytes += len(content)
        if len(self._inodes) >= _BATCH_FILES or self._bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        for inode, extents in zip(self._inodes, self._sink.add_contents(self._contents), strict=True):
            inode.extents = extents
        self._inodes, self._contents, self._bytes = [], [], 0


def _add(entry: Entry, builder: TreeBuilder, sink: ContentSink, batch: _Batch) -> None:
    if entry.link_to is not None:
        builder.link(entry.path, entry.link_to)
        return
    inode = entry.inode
    builder.add(entry.path, inode)
    if not inode.size_bytes:
        return
    if inode.size_bytes <= CHUNK_BYTES and entry.data_ranges is None:
        batch.add(inode, entry.body.read(inode.size_bytes))
    else:
        inode.extents = sink.add_stream(entry.body, inode.size_bytes, entry.data_ranges)


def _apply_whiteout(path: bytes, builder: TreeBuilder) -> bool:
    """True if the entry is no file but an order to take something away."""
    folder, _, name = path.rstrip(b"/").rpartition(b"/")
    if name == _OPAQUE:
        builder.clear(folder)
    elif any(part.startswith(_BOOKKEEPING) for part in path.split(b"/")):
        return True
    elif name.startswith(_WHITEOUT):
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise refused(path, "takes away what is no name")
        builder.remove(folder + b"/" + hidden)
    else:
        return False
    return True


def _open_archive(path: Path) -> int:
    """Never blocks on a pipe. Raises NotFound or InvalidInput."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidInput
        raise kind(
            f"The archive {path} cannot be read: {error.strerror}.", remedy="Check the path.", path=str(path)
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(
            f"{path} is not a file.", remedy="Name a tar archive, or import a folder.", path=str(path)
        )
    return descriptor
