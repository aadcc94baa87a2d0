"""Where inodes go: close together, in the tree's order, and none across a block's end that must not be.

An inode with inline data (a directory's entries, a symlink's target) has to lie in one block. The room that
one leaves behind at a block's end is filled with the plain inodes that follow, so an index has next to no
padding and neighbours in the tree stay neighbours on disk.
"""

from __future__ import annotations

from glowplug.image.index.erofs import BLOCK_BYTES, SLOT_BYTES, padded


class InodeZone:
    """Hands out offsets in the inode zone. The first slot stays empty: node number 0 means "none" to many."""

    def __init__(self) -> None:
        self.end = SLOT_BYTES
        self._gaps: list[tuple[int, int]] = []

    def place(self, size_bytes: int, whole_bytes: int) -> int:
        """Room for an inode of ``size_bytes``, of which the first ``whole_bytes`` stay in one block."""
        size_bytes = padded(size_bytes, SLOT_BYTES)
        if self._gaps:
            start, end = self._gaps[-1]
            if size_bytes <= end - start:
                self._gaps.pop()
                if start + size_bytes < end:
                    self._gaps.append((start + size_bytes, end))
                return start
        start = self.end
        block_end = padded(start, BLOCK_BYTES)
        if start < block_end < start + whole_bytes:
            self._gaps.append((start, block_end))
            start = block_end
        self.end = start + size_bytes
        return start
