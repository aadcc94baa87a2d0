"""Where memory is cut into chunks: at pages whose content says so, because equal pages move about in files.

Whoever keeps files and whoever seals them before that must cut them alike, so the rule has one place.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from typing_extensions import Buffer

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES

_CUT_BYTES = 64  # of a page, that decide whether a chunk ends before it
CUT_ONE_IN = 128
_MIN_CUT_BYTES = 64 << 10

EndsBefore = Callable[[memoryview], bool]
"""Whether a chunk ends before the page that begins with these 64 bytes."""


def is_memory(size_bytes: int) -> bool:
    """Whether a file of this length is cut at pages: whole pages of it, and more than one chunk."""
    return size_bytes > CHUNK_BYTES and size_bytes % ALIGN_BYTES == 0


def first_cut(body: Buffer, ends_before: EndsBefore) -> int:
    """Bytes of the first chunk of ``body``, which is the rest of a file or its next CHUNK_BYTES.

    64 KiB to 1 MiB, about 500 KiB on average. So a run of equal pages has equal chunks but for its ends,
    wherever it lies in a file. Measured for two captures of one PyTorch server (``docs/image-format.md``):
    every mebibyte, or anything down to 8 KiB, none of their bytes are shared; this way as much as with chunks
    of single pages.
    """
    view = memoryview(body)
    for at in range(_MIN_CUT_BYTES, len(view), ALIGN_BYTES):
        if ends_before(view[at : at + _CUT_BYTES]):
            return at
    return len(view)


def checksum_ends(start_of_page: memoryview) -> bool:
    """The rule of what is not sealed: one page in :data:`CUT_ONE_IN`, the same ones for everybody."""
    return zlib.crc32(start_of_page) % CUT_ONE_IN == 0
