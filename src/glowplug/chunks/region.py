"""A region: where everything is, once. Content goes there in packs, and what is there is not sent again.

Whatever is interrupted at whatever moment: a pack is there whole, with its index behind it, or not at all,
so the next push of anything that shares content goes on from there. Nothing that an image in the region
refers to, or that somebody who is pushing relies on, is ever removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from glowplug.chunks.compression import compressed_limit_bytes, expand_at_most
from glowplug.chunks.object_keys import PLACEMENT_NAME
from glowplug.chunks.objects import WriteObjects
from glowplug.chunks.pack import PACK_BYTES, Member, index_key, index_members, pack_key
from glowplug.chunks.pack_directory import Listed, PackDirectory
from glowplug.chunks.pack_upload import Uploads
from glowplug.chunks.placement import Place, Placement, placement_limit_bytes
from glowplug.chunks.region_condemned import Condemned
from glowplug.chunks.region_leases import Lease, Leases
from glowplug.chunks.store import Store
from glowplug.chunks.table import ChunkTable
from glowplug.types.clock import Clock, SystemClock

GRACE_S = 24 * 3600.0
"""How long packs that nothing refers to are kept: an interrupted push finds them when it is tried again."""

HOLDERS = ("images/", "snapshots/")
"""Prefixes under which placements tell which packs are needed."""

_MAX_PLACED = 1 << 24  # chunks of one blob: ten terabytes or so; bounds what a damaged placement costs
_CONDEMNED_KEY = "gc/condemned.json"
_REMOVED_AT_ONCE = 1000
_SOURCE_TIMEOUT_S = 60.0
_PLACEMENT_TIMEOUT_S = 300.0

Progress = Callable[[int, int], None]
"""Called with how many bytes are in the region by now, and of how many."""


class Pushed(NamedTuple):
    """What :meth:`Region.push_chunks` did. ``sent_bytes`` as stored, ``skipped_bytes`` of content."""

    placement: Placement
    sent_bytes: int
    skipped_bytes: int
    packs: int


@dataclass(frozen=True)
class Collected:
    """What :meth:`Region.gc` did; ``waiting_packs`` are unneeded for less than the grace period."""

    removed_packs: int
    removed_chunks: int
    freed_bytes: int
    waiting_packs: int


class Region:
    """The content of a region. Safe to use from several threads, processes and machines at once."""

    def __init__(
        self,
        objects: WriteObjects,
        kept_indexes: Path | None = None,
        *,
        clock: Clock | None = None,
        pause: Callable[[float], object] = time.sleep,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        """``kept_indexes`` is a folder of this machine for what packs hold: it saves requests."""
        self.objects = objects
        self._clock = clock or SystemClock()
        self._leases = Leases(objects, self._clock, pause)
        self._directory = PackDirectory(objects, kept_indexes)
        self._pack_bytes = pack_bytes

    def close(self) -> None:
        """Drop what is under way. May be called twice."""
        close = getattr(self.objects, "close", None)
        if close is not None:
            close()

    def pushing(self) -> AbstractContextManager[Lease]:
        """Hold this from before :meth:`push_chunks` until something in the region refers to its placement.

        Inside, no pack is removed. Raises Conflict while garbage is collected for longer than a minute.
        """
        return self._leases.pushing()

    def push_chunks(
        self,
        table: ChunkTable,
        source: Store,
        lease: Lease,
        *,
        known: Placement | None = None,
        is_compressing: bool = False,
        progress: Progress = lambda done, total: None,
        check: Callable[[], None] = lambda: None,
    ) -> Pushed:
        """Bring the chunks of ``table`` there that are not there, in its order, from ``source``.

        ``known`` is an earlier placement of the same table: what it says is kept where it still holds.
        ``check`` is called often and raises to stop. Raises what the source and the objects raise.
        """
        listed = Listed.of(self.objects)
        places = self._known_places(table, known, listed)
        wanted = {chunk.id for chunk, place in zip(table, places, strict=True) if place is None}
        if wanted:
            _add_found(table, places, self._directory.find(wanted, listed, check))
        skipped_bytes = sum(
            chunk.size_bytes for chunk, place in zip(table, places, strict=True) if place is not None
        )
        progress(skipped_bytes, table.content_bytes)
        with Uploads(self.objects, self._pack_bytes, is_compressing=is_compressing) as uploads:
            done_bytes = skipped_bytes
            for index, chunk in enumerate(table):
                if places[index] is None:
                    check()
                    lease.renew()
                    uploads.add(index, chunk, source.get(chunk, _SOURCE_TIMEOUT_S))
                    done_bytes += chunk.size_bytes
                    progress(done_bytes, table.content_bytes)
            for index, place in uploads.finish():
                places[index] = place
        placement = Placement(Placement.pack([place for place in places if place is not None]))
        return Pushed(placement, uploads.sent_bytes, skipped_bytes, uploads.packs)

    def _known_places(self, table: ChunkTable, known: Placement | None, listed: Listed) -> list[Place | None]:
        if known is None or len(known) != len(table):
            return [None] * len(table)
        return [
            place if place.end <= listed.packs.get(place.pack_id, 0) else None
            for place in map(known.place, range(len(known)))
        ]

    def gc(
        self,
        say: Callable[[str, float | None], None] = lambda text, fraction: None,
        *,
        grace_s: float = GRACE_S,
    ) -> Collected:
        """Remove packs that no placement under :data:`HOLDERS` has referred to for ``grace_s``.

        Raises Conflict while somebody pushes. A placement that cannot be read stops it: nothing is removed
        in doubt.
        """
        with self._leases.collecting() as lease:
            needed = self._needed_packs(say)
            lease.renew()
            listed = Listed.of(self.objects)
            unneeded = (listed.packs.keys() | listed.indexes.keys()) - needed
            condemned = Condemned(self.objects, self._clock, _CONDEMNED_KEY, "packs")
            names = condemned.condemn((pack_id.hex() for pack_id in unneeded), grace_s)
            removable = [bytes.fromhex(name) for name in names]
            say(f"removing {len(removable)} of {len(listed.packs)} packs", None)
            self._remove(removable, lease)
            waiting_packs = condemned.save_without(names)
        return Collected(
            removed_packs=len(removable),
            removed_chunks=sum(index_members(listed.indexes.get(pack_id, 0)) for pack_id in removable),
            freed_bytes=sum(listed.packs.get(pack_id, 0) for pack_id in removable),
            waiting_packs=waiting_packs,
        )

    def _remove(self, packs: Sequence[bytes], lease: Lease) -> None:
        for first in range(0, len(packs), _REMOVED_AT_ONCE):
            batch = packs[first : first + _REMOVED_AT_ONCE]
            lease.renew()
            # The index first: a pack without one is as good as not there for a pusher.
            self.objects.delete([index_key(pack_id) for pack_id in batch])
            self.objects.delete([pack_key(pack_id) for pack_id in batch])

    def collecting(self) -> AbstractContextManager[Lease]:
        """Nobody pushes or collects inside: for removing what refers to packs. Raises Conflict."""
        return self._leases.collecting()

    def _needed_packs(self, say: Callable[[str, float | None], None]) -> set[bytes]:
        needed: set[bytes] = set()
        for holder in HOLDERS:
            for info in self.objects.list(holder):
                if info.key.endswith(f"/{PLACEMENT_NAME}"):
                    say(f"reading {info.key}", None)
                    needed.update(self.placement(info.key).pack_ids())
        return needed

    def placement(self, key: str, max_chunks: int = _MAX_PLACED) -> Placement:
        """The placement that this object is. Raises NotFound, InvalidInput .."""
        limit_bytes = placement_limit_bytes(max_chunks)
        frame = self.objects.read_all(key, compressed_limit_bytes(limit_bytes), _PLACEMENT_TIMEOUT_S)
        return Placement(expand_at_most(frame, limit_bytes))


def _add_found(
    table: ChunkTable, places: list[Place | None], found: Mapping[bytes, tuple[bytes, Member]]
) -> None:
    for index, chunk in enumerate(table):
        if places[index] is None and chunk.id in found:
            pack_id, member = found[chunk.id]
            if member.chunk == chunk:
                places[index] = Place(pack_id, member.offset, member.stored_bytes, member.encoding)
