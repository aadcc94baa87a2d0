"""The unit of content: at most a mebibyte, named by its BLAKE3, never trusted before it was hashed.

A file of up to :data:`CHUNK_BYTES` is one chunk, a larger one is cut every :data:`CHUNK_BYTES` (so only its
last chunk is shorter). Equal content has equal names everywhere: across files, images, snapshots, machines.
"""

from __future__ import annotations

from typing import NamedTuple

import blake3
from typing_extensions import Buffer

from glowplug.types.errors import GlowplugError, NotFound

CHUNK_BYTES = 1 << 20
ALIGN_BYTES = 4096  # where a chunk may start on SSD and in a blob: the page and the EROFS block
ID_BYTES = 32

_ZEROS = bytes(CHUNK_BYTES)


class ChunkMissing(NotFound):
    """A tier does not hold the chunk; ask the next one."""

    code = "chunk_missing"


class ChunkInvalid(GlowplugError):
    """Bytes that came in place of a chunk are not it: nothing of them was kept or handed on."""

    code = "chunk_invalid"


class Chunk(NamedTuple):
    """A chunk's name and length: 32 bytes of BLAKE3, and 1 to :data:`CHUNK_BYTES` bytes.

    Two lengths of one name are two chunks: a table that lies must not decide what others get.
    """

    id: bytes
    size_bytes: int

    @staticmethod
    def of(data: Buffer) -> Chunk:
        """The chunk that ``data`` is."""
        view = memoryview(data)
        return Chunk(blake3.blake3(view).digest(), view.nbytes)

    def verify(self, data: Buffer, tier: str) -> None:
        """Raise ChunkInvalid unless ``data`` is this chunk; ``tier`` is where it came from."""
        view = memoryview(data)
        if view.nbytes != self.size_bytes or blake3.blake3(view).digest() != self.id:
            raise self.invalid(tier)

    def invalid(self, tier: str) -> ChunkInvalid:
        """The error of a tier that gave something else."""
        return ChunkInvalid(
            f"What {tier} gave for chunk {self.id.hex()[:16]} is not that chunk.",
            remedy="It is fetched again from the next tier; `glowplug image verify` checks all of them.",
            chunk=self.id.hex(),
            tier=tier,
        )

    def missing(self, tier: str) -> ChunkMissing:
        """The error of a tier that does not hold it."""
        return ChunkMissing(
            f"Chunk {self.id.hex()[:16]} is not in {tier}.",
            remedy="`glowplug image pull` fetches what an image needs.",
            chunk=self.id.hex(),
            tier=tier,
        )


def aligned(size_bytes: int) -> int:
    """``size_bytes`` rounded up to whole :data:`ALIGN_BYTES`."""
    return (size_bytes + ALIGN_BYTES - 1) // ALIGN_BYTES * ALIGN_BYTES


def is_zero(body: Buffer) -> bool:
    """Whether content is all zeros, and so a hole. Looks at the ends first: others are rarely zero there."""
    view = memoryview(body)
    if not len(view):
        return True
    if view[0] or view[-1]:
        return False
    zeros = _ZEROS if len(view) == CHUNK_BYTES else bytes(len(view))
    return body == zeros
