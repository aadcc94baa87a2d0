"""What an origin of images promises: a tree whose content went to a sink, and a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from glowplug.chunks.chunk import Chunk
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Extent, Tree
from glowplug.image.job import Job

Range = tuple[int, int]
"""Start and length of a run of bytes that is data and no hole."""


class ByteStream(Protocol):
    """The only thing asked of a stream: at most ``size`` bytes, none at its end."""

    def read(self, size: int, /) -> bytes:
        """As of a raw binary file: may give less than asked for."""
        ...


class ContentSink(Protocol):
    """Takes file content, cuts it into chunks and stores them. Safe to use from many threads.

    Whole chunks of zeros become holes. Every method raises ResourceExhausted when the disk is full.
    """

    def add_contents(self, contents: Sequence[bytes]) -> list[tuple[Extent, ...]]:
        """The whole contents of several small files, at most CHUNK_BYTES each: the cheap way for many."""
        ...

    def add_stream(
        self, stream: ByteStream, size_bytes: int, data_ranges: Sequence[Range] | None = None
    ) -> tuple[Extent, ...]:
        """A file of ``size_bytes`` read from ``stream``.

        With ``data_ranges`` (ascending, apart) the stream holds the bytes of those only, one range after the
        other, and the rest is holes. Reads no byte too many. Raises InvalidInput if the stream ends early.
        """
        ...

    def add_file(
        self, descriptor: int, size_bytes: int, data_ranges: Sequence[Range] | None = None
    ) -> tuple[Extent, ...]:
        """The first ``size_bytes`` of an open file here. Raises InvalidInput if it is shorter."""
        ...

    def add_pages(
        self, descriptor: int, size_bytes: int, cuts: Sequence[int] | None = None
    ) -> tuple[Extent, ...]:
        """As :meth:`add_file`, for a file that ``is_cut_at_pages``: memory, whose pages move about.

        ``cuts`` are its chunks' lengths, whole pages each, where the content (sealed) does not tell them.
        """
        ...

    def missing(self, chunks: Iterable[Chunk]) -> set[Chunk]:
        """Those that the store does not hold; the others need not be read and added again."""
        ...


class Origin(Protocol):
    """A source of one image that was looked at and can be read. May be read once."""

    def describe(self) -> str:
        """What it is, for people: ``folder /srv/root``, ``registry.example.com/app:1``."""
        ...

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """The complete tree, its content gone to ``sink``. Reports to ``job`` and heeds its deadline."""
        ...
