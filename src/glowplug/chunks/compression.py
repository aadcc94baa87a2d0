"""zstd without surprises: what is expanded was announced beforehand, byte for byte.

A frame says how long its content is, and so does whoever hands us the frame. Nothing is allocated before both
agree, so a bomb is refused by its first bytes.
"""

from __future__ import annotations

import zstandard
from typing_extensions import Buffer

from glowplug.types.errors import InvalidInput

LEVEL = 3  # 3.1-3.7x on code at about the speed of one connection; higher levels gain little


def compress(data: Buffer) -> bytes:
    """One zstd frame that states its content's length and a checksum of it."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=True)
    return compressor.compress(memoryview(data))


def expand(frame: Buffer, size_bytes: int) -> bytes:
    """The content of one frame, exactly ``size_bytes`` long. Raises InvalidInput for anything else."""
    content_bytes = announced_bytes(frame)
    if content_bytes != size_bytes:
        raise _damaged(f"it announces {content_bytes} bytes where {size_bytes} belong")
    try:
        content = zstandard.ZstdDecompressor().decompress(
            memoryview(frame), max_output_size=size_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as problem:
        raise _damaged(str(problem)) from problem
    if len(content) != size_bytes:
        raise _damaged(f"it holds {len(content)} bytes where {size_bytes} belong")
    return content


def expand_at_most(frame: Buffer, limit_bytes: int) -> bytes:
    """The content of one frame, at most ``limit_bytes`` long. Raises InvalidInput for anything else."""
    content_bytes = announced_bytes(frame)
    if content_bytes > limit_bytes:
        raise _damaged(f"it announces {content_bytes} bytes, more than {limit_bytes}")
    return expand(frame, content_bytes)


def announced_bytes(frame: Buffer) -> int:
    """How long a frame says that its content is. Raises InvalidInput if it does not say."""
    try:
        announced = zstandard.frame_content_size(memoryview(frame))
    except zstandard.ZstdError as problem:
        raise _damaged(str(problem)) from problem
    if announced < 0:
        raise _damaged("it does not say how long it is")
    return announced


def compressed_limit_bytes(size_bytes: int) -> int:
    """No frame of ``size_bytes`` is longer (ZSTD_COMPRESSBOUND, rounded up)."""
    return size_bytes + size_bytes // 128 + 1024


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(f"This is not the compressed content expected: {why}.", remedy="Fetch it again.")
