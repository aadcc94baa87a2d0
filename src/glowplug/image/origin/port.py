"""What an origin of images promises: a tree whose content went to a sink, and a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Extent, Tree
from glowplug.image.job import Job


class ContentSink(Protocol):
    """Takes file content, cuts it into chunks and stores them. Safe to use from many threads."""

    def add_stream(self, stream: BinaryIO, size_bytes: int) -> tuple[Extent, ...]:
        """Exactly ``size_bytes`` from ``stream``, from offset 0; whole chunks of zeros become holes.

        Raises InvalidInput if the stream ends early; ResourceExhausted when the disk is full.
        """
        ...

    def add_file(
        self, path: Path, data_ranges: Sequence[tuple[int, int]], size_bytes: int
    ) -> tuple[Extent, ...]:
        """A file here; ``data_ranges`` are (start, length) of what is data (SEEK_DATA), the rest is holes."""
        ...


class Origin(Protocol):
    """A source of one image that was looked at and can be read. May be read once."""

    def describe(self) -> str:
        """What it is, for people: ``folder /srv/root``, ``registry.example.com/app:1``."""
        ...

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """The complete tree, its content gone to ``sink``. Reports to ``job`` and heeds its deadline."""
        ...
