"""What comes along with a chunk that somebody waits for."""

from __future__ import annotations

from collections.abc import Iterable

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.types.errors import InvalidInput

READ_BYTES = 256 << 10
"""A read's request takes neighbours along up to this, 2.6 ms at 100 MB/s. What lies further off is
read ahead meanwhile, on other connections (:mod:`glowplug.image.lazy.read_ahead`)."""

READ_BACK_BYTES = 64 << 10
"""Of these, what lies before the chunk: directories are read forwards, mostly."""

READ_NEIGHBOURS = 64  # each costs a look-up before the request leaves

GAP_BYTES = 64 << 10
"""What is read over and thrown away to save a request."""


def chunk_of(blob: RemoteBlob, index: int) -> Chunk:
    """Chunk ``index``. Raises InvalidInput if there is none."""
    if not 0 <= index < len(blob.table):
        raise InvalidInput(
            f"The blob has {len(blob.table)} chunks, so there is no chunk {index}.",
            remedy="Verify the image with `glowplug image verify`.",
        )
    return blob.table[index]


def beside(blob: RemoteBlob, index: int) -> Iterable[int]:
    """Indices of the chunks around ``index`` that may come along with it, as the blob lies."""
    table = blob.table
    first, last = index, index + 1
    while (
        first > 0
        and index - first < READ_NEIGHBOURS // 4
        and table.offset(index) - table.offset(first - 1) <= READ_BACK_BYTES
    ):
        first -= 1
    while (
        last < len(table)
        and last - first < READ_NEIGHBOURS
        and table.offset(last + 1) - table.offset(first) <= READ_BYTES
    ):
        last += 1
    return (other for other in range(first, last) if other != index)
