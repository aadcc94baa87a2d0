"""Graduation: an image whose every chunk is on the SSD gets an index that points straight into the packs.

Mounted from that index, its reads take the same way as those of any file: no daemon, one copy in the page
cache. What has to be excluded is a pack changing under such a mount, because a hole punched there reads as
zeros. So the SSD tier keeps a *mark* for the image: it is set only while every chunk is there, and cleared in
the transaction that removes any of them; and a mount needs mark and pin at once (``pin_if_complete``). The
mark's name has the hash of the record in it, which names packs and index: chunks that went and came back lie
elsewhere, and a mark for where they lie now says nothing about an older index, nor about a damaged record.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import blake3
from pydantic import Field, ValidationError

from glowplug.chunks.chunk import ALIGN_BYTES, Chunk, aligned
from glowplug.chunks.ssd_packs import Location
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.manifest import FileDigest
from glowplug.image.index.relocate import relocate
from glowplug.image.job import Job
from glowplug.image.lazy.gather import SHARE, Gathered, gather
from glowplug.image.lock import held, held_if_free
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import Spec

_log = logging.getLogger(__name__)

MAX_RECORD_BYTES = 1 << 20
TIMEOUT_S = 60.0  # somebody else's graduation of the same image takes about a second
PIN_PREFIX = "graduate:"


class PinnedPacks(Protocol):
    """What mounting needs of the SSD tier (:class:`glowplug.chunks.ssd.SsdStore`)."""

    def flush(self) -> None:
        """Make all that was put durable and known to other processes."""
        ...

    def locate_all(self, chunks: Iterable[Chunk]) -> Sequence[Location | None]:
        """Where these lie, None for those that are not here."""
        ...

    def pack_path(self, pack: int) -> Path:
        """The file of a pack."""
        ...

    def pin(self, owner: str, table: Path) -> None:
        """Keep the chunks of this table from being removed until ``unpin``, also across restarts."""
        ...

    def unpin(self, owner: str) -> None:
        """Release; an owner without pins is no error."""
        ...

    def pins(self) -> Iterable[str]:
        """All owners."""
        ...

    def mark_complete(
        self, name: str, table: Path, locations: Sequence[Location | None] | None = None
    ) -> bool:
        """Note, durably, that every chunk of the table is here, and lies where ``locations`` says, if so."""
        ...

    def pin_if_complete(self, owner: str, name: str, table: Path) -> bool:
        """``pin``, if the mark is there: both in one transaction."""
        ...

    def is_complete(self, name: str) -> bool:
        """Whether the mark is there."""
        ...


class GraduatedRecord(Spec):
    """The content of ``graduated.json``.

    ``packs`` are the devices of the index, in their order; the file of the gathered image, if there is one,
    is one more.
    """

    version: Literal[2] = 2
    index: FileDigest
    gathered: FileDigest | None = None
    packs: list[int] = Field(max_length=0xFFFF)

    def is_mountable(self, *, can_gather: bool) -> bool:
        """Whether a kernel that can, or cannot, mount gathered files can mount this."""
        return can_gather or self.gathered is None


@dataclass(frozen=True)
class Graduated:
    """An index on local packs; usable only as long as the mark ``mark`` stands."""

    digest: str
    record: GraduatedRecord
    record_hash: str

    @property
    def mark(self) -> str:
        """Name of the SSD tier's mark."""
        return mark_name(self.digest, self.record_hash)


def mark_name(digest: str, record_hash: str) -> str:
    """The SSD tier's mark for the image ``digest`` as graduated by the record of that hash."""
    return f"{digest}/{record_hash}"


def read_graduated(folder: IndexFolder) -> Graduated | None:
    """How the image has graduated, None if it has not; whether its mark still stands is not looked at."""
    try:
        with folder.graduated_record_path.open("rb") as file:
            written = file.read(MAX_RECORD_BYTES)
        record = GraduatedRecord.model_validate_json(written)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as damage:
        _log.warning("graduation of image %s is forgotten: its record is damaged: %s", folder.digest, damage)
        return None
    return Graduated(folder.digest, record, blake3.blake3(written).hexdigest())


def is_graduated(folder: IndexFolder, ssd: PinnedPacks, *, can_gather: bool) -> bool:
    """Whether the next mount can be made from packs; ``can_gather`` as in :func:`graduate`."""
    graduated = read_graduated(folder)
    if graduated is None or not graduated.record.is_mountable(can_gather=can_gather):
        return False
    return ssd.is_complete(graduated.mark)


def graduate(folder: IndexFolder, ssd: PinnedPacks, *, can_gather: bool, clock: Clock | None = None) -> bool:
    """Let the image graduate if every chunk is on the SSD; returns whether it has. Idempotent.

    ``can_gather``: the kernel mounts gathered small files (:mod:`glowplug.image.lazy.gather`). Safe against
    other processes that do the same, and against those that prune: the chunks are pinned while their places
    are written down.
    """
    if is_graduated(folder, ssd, can_gather=can_gather):
        return True
    ssd.flush()
    table = folder.table()
    if None in ssd.locate_all(table):
        return False
    clock = clock or SystemClock()
    job = Job(lambda _text, _fraction: None, clock, clock.monotonic() + TIMEOUT_S)
    with held(_lock(folder), job, f"waiting for the graduation of image {folder.digest[:16]}"):
        if is_graduated(folder, ssd, can_gather=can_gather):
            return True
        owner = f"{PIN_PREFIX}{folder.digest}"
        ssd.pin(owner, folder.chunks_path)
        try:
            return _write_down(folder, table, ssd, can_gather=can_gather)
        finally:
            ssd.unpin(owner)


def release_if_abandoned(folder: IndexFolder, ssd: PinnedPacks) -> None:
    """Remove the pin of a graduation that was killed."""
    with held_if_free(_lock(folder)) as is_abandoned:
        if is_abandoned:
            ssd.unpin(f"{PIN_PREFIX}{folder.digest}")


def _lock(folder: IndexFolder) -> Path:
    return folder.path / ".graduate.lock"


def _write_down(folder: IndexFolder, table: ChunkTable, ssd: PinnedPacks, *, can_gather: bool) -> bool:
    places = ssd.locate_all(table)
    found = [place for place in places if place is not None]
    if len(found) < len(places):
        return False
    blocks = _blocks_used(found, table)
    gathered = gather(table, found, blocks, SHARE if can_gather else 0)
    try:
        index = _relocated(folder, table, found, blocks, gathered)
    except InvalidInput as unfit:  # more packs than an image can have devices
        _log.warning("image %s does not graduate: %s", folder.digest, unfit.message)
        return False
    if gathered.offsets:
        _replace(folder.gathered_path, gathered.image)
    record = GraduatedRecord(
        index=FileDigest.of(index),
        gathered=FileDigest.of(gathered.image) if gathered.offsets else None,
        packs=sorted(blocks),
    )
    written = record.model_dump_json().encode()
    _replace(folder.graduated_index_path, index)
    _replace(folder.graduated_record_path, written)
    mark = mark_name(folder.digest, blake3.blake3(written).hexdigest())
    return ssd.mark_complete(mark, folder.chunks_path, places)


def _relocated(
    folder: IndexFolder,
    table: ChunkTable,
    found: Sequence[Location],
    blocks: Mapping[int, int],
    gathered: Gathered,
) -> bytes:
    number = max(blocks, default=0) + 1  # of no pack, and behind all of them: the last device

    def place(chunk: int) -> tuple[int, int]:
        offset_bytes = gathered.offsets.get(chunk)
        return found[chunk] if offset_bytes is None else (number, offset_bytes)

    last = {number: gathered.blocks} if gathered.offsets else {}
    return relocate(folder.index_path.read_bytes(), place, table, {**blocks, **last})


def _blocks_used(found: Sequence[Location], table: ChunkTable) -> dict[int, int]:
    """How much of each pack the image sees: no more than up to the end of its last chunk there."""
    ends: dict[int, int] = {}
    for (pack, offset), size_bytes in zip(found, table.sizes, strict=True):
        ends[pack] = max(ends.get(pack, 0), offset + aligned(size_bytes))
    return {pack: end // ALIGN_BYTES for pack, end in ends.items()}


def _replace(path: Path, data: bytes) -> None:
    """The new content or the old, whatever is killed when; on disk when this returns."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
