"""An image's layers, applied one on top of the other to a tree, each checked twice on the way.

The blob that was fetched must have the manifest's digest, and the archive in it, once decompressed, the
digest that the configuration names (``diff_id``). Both are known only at a layer's end: by then its content
may be in the store, but no tree comes out of here unless every layer was what it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.compressed import Unpacked
from glowplug.image.origin.confine import TreeBuilder
from glowplug.image.origin.digest import Digest
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.oci_manifest import Descriptor
from glowplug.image.origin.port import ByteStream, ContentSink
from glowplug.image.origin.progress import Meter
from glowplug.image.origin.tar import apply_tar
from glowplug.types.errors import InvalidInput

_READ_BYTES = 256 << 10
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Layer:
    """The blob of a layer, and the digest of the tar archive in it."""

    blob: Descriptor
    diff_id: Digest


class CheckedStream:
    """A stream that must turn out to be what ``digest`` (and ``size_bytes``) says. Raises InvalidInput."""

    def __init__(
        self,
        stream: ByteStream,
        digest: Digest,
        what: str,
        *,
        size_bytes: int | None = None,
        on_read: Callable[[int], None] = lambda _size_bytes: None,
    ) -> None:
        self._stream = stream
        self._digest = digest
        self._what = what
        self._size_bytes = size_bytes
        self._on_read = on_read
        self._hasher = digest.hasher()
        self._got_bytes = 0

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; at the end, none, and only if all were right."""
        data = self._stream.read(size)
        self._hasher.update(data)
        self._got_bytes += len(data)
        self._on_read(len(data))
        if self._size_bytes is not None and (
            self._got_bytes > self._size_bytes or (not data and self._got_bytes < self._size_bytes)
        ):
            raise InvalidInput(
                f"The content of {self._what} is not as long as its manifest says.",
                remedy="It is damaged or was replaced: push or copy the image again.",
                expected_bytes=self._size_bytes,
            )
        if not data:
            self._digest.compare(self._hasher.hexdigest(), self._what)
        return data

    def drain(self) -> None:
        """Read what is left, so that everything was checked."""
        while self.read(_READ_BYTES):
            pass


class _Padded:
    """An archive with the zeros that fill its last block: umoci's layers stop right before them."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._got_bytes = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size) or bytes(min(size, -self._got_bytes % _BLOCK_BYTES))
        self._got_bytes += len(data)
        return data


def apply_layers(
    layers: Sequence[Layer],
    blobs: Iterable[ByteStream],
    sink: ContentSink,
    job: Job,
    limits: ArchiveLimits | None = None,
) -> Tree:
    """The tree that ``layers``, lowest first, make; ``blobs`` are their contents in the same order.

    Raises InvalidInput unless every layer is what its digests say.
    """
    limits = limits or ArchiveLimits()
    builder = TreeBuilder(limits)
    meter = Meter(job, "reading layers", sum(layer.blob.size_bytes for layer in layers))
    for number, (layer, blob) in enumerate(zip(layers, blobs, strict=True), start=1):
        what = f"layer {number} of {len(layers)}"
        packed = CheckedStream(
            blob, layer.blob.digest, what, size_bytes=layer.blob.size_bytes, on_read=meter.add
        )
        archive = CheckedStream(Unpacked(packed, limits), layer.diff_id, f"{what}, unpacked,")
        apply_tar(_Padded(archive), builder, sink, limits, job, whiteouts=True)
        archive.drain()
        packed.drain()
    return builder.finish()
