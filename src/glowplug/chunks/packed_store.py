"""The chunks of one blob, wherever its placement says they lie, as a tier like any other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.objects import Objects
from glowplug.chunks.pack import decode, pack_key
from glowplug.chunks.placement import Placement
from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import InvalidInput, NotFound, Unavailable


class PackedStore:
    """See :class:`glowplug.chunks.store.Store`. One range read for each chunk."""

    def __init__(self, objects: Objects, table: ChunkTable, placement: Placement) -> None:
        """Raises InvalidInput if the placement is another blob's."""
        if len(placement) != len(table):
            raise InvalidInput(
                f"The placement knows {len(placement)} chunks, the image has {len(table)}.",
                remedy="`glowplug image pull` fetches the placement again.",
            )
        self._objects = objects
        self._table = table
        self._placement = placement

    @property
    def tier(self) -> str:
        """The tier of the objects that hold the packs."""
        return self._objects.tier

    @cached_property
    def _indices(self) -> dict[bytes, int]:
        return {chunk.id: index for index, chunk in enumerate(self._table)}

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        """See :class:`glowplug.chunks.store.Store`."""
        index = self._indices.get(chunk.id)
        if index is None:
            raise chunk.missing(self.tier)
        place = self._placement.place(index)
        try:
            body = self._objects.read(pack_key(place.pack_id), place.offset, place.stored_bytes, timeout_s)
        except NotFound as absent:
            raise chunk.missing(self.tier) from absent
        except InvalidInput as wrong:
            raise Unavailable(wrong.message, remedy=wrong.remedy, **wrong.details) from wrong
        return bytes(decode(body, place.encoding, chunk, self.tier))

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """See :class:`glowplug.chunks.store.Store`."""
        return [chunk for chunk in dict.fromkeys(chunks) if chunk.id not in self._indices]
