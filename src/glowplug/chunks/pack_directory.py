"""Which chunks are in a region already: what the indexes of its packs say, each fetched once and then kept.

Indexes are small (40 bytes a chunk) and never change, so a pusher keeps them in a folder of its own; only
those of new packs are fetched. What is kept is bounded by what the region holds, and read one at a time.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from glowplug.chunks.objects import WriteObjects
from glowplug.chunks.pack import (
    MAX_INDEX_BYTES,
    PREFIX,
    Member,
    PackIndex,
    index_key,
    pack_of_index_key,
    pack_of_key,
)
from glowplug.types.errors import InvalidInput, NotFound

_log = logging.getLogger(__name__)

FETCHES_AT_ONCE = 16
INDEX_TIMEOUT_S = 60.0
_INDEXES_AT_ONCE = 256


@dataclass(frozen=True)
class Listed:
    """The packs of a region: the size of each pack, and of each index, by pack id."""

    packs: Mapping[bytes, int]
    indexes: Mapping[bytes, int]

    @staticmethod
    def of(objects: WriteObjects) -> Listed:
        """What is there now."""
        packs: dict[bytes, int] = {}
        indexes: dict[bytes, int] = {}
        for info in objects.list(PREFIX):
            if (pack_id := pack_of_key(info.key)) is not None:
                packs[pack_id] = info.size_bytes
            elif (pack_id := pack_of_index_key(info.key)) is not None:
                indexes[pack_id] = info.size_bytes
        return Listed(packs, indexes)


class PackDirectory:
    """Looks chunks up in the packs of a region. ``kept`` is the folder for indexes; None keeps nothing."""

    def __init__(self, objects: WriteObjects, kept: Path | None) -> None:
        self._objects = objects
        self._kept = kept

    def find(
        self, wanted: Collection[bytes], listed: Listed, check: Callable[[], None]
    ) -> dict[bytes, tuple[bytes, Member]]:
        """Pack id and member of each wanted chunk that is there, from as few packs as is simple to say.

        A pack whose index is missing, damaged or of another length is as good as not there. ``check`` raises
        to stop.
        """
        ids = frozenset(wanted)
        matches = [
            (pack_id, [member for member in index if member.chunk.id in ids])
            for pack_id, index in self._sound(listed, check)
            if index.holds_any(ids)
        ]
        found: dict[bytes, tuple[bytes, Member]] = {}
        for pack_id, members in sorted(matches, key=lambda match: (-len(match[1]), match[0])):
            for member in members:
                found.setdefault(member.chunk.id, (pack_id, member))
        return found

    def _sound(self, listed: Listed, check: Callable[[], None]) -> Iterator[tuple[bytes, PackIndex]]:
        self._forget_all_but(listed.packs)
        usable = iter(sorted(listed.packs.keys() & listed.indexes.keys()))
        with ThreadPoolExecutor(FETCHES_AT_ONCE, "glowplug-pack-index") as fetchers:
            while batch := list(islice(usable, _INDEXES_AT_ONCE)):
                check()
                for pack_id, index in zip(batch, fetchers.map(self._index, batch), strict=True):
                    if index is not None and index.pack_bytes == listed.packs[pack_id]:
                        yield pack_id, index

    def _index(self, pack_id: bytes) -> PackIndex | None:
        kept = None if self._kept is None else self._kept / f"{pack_id.hex()}.index"
        if kept is not None:
            try:
                return PackIndex(kept.read_bytes())
            except FileNotFoundError:
                pass
            except (InvalidInput, OSError) as problem:
                _log.warning("%s is fetched again: %s", kept, problem)
        try:
            data = self._objects.read_all(index_key(pack_id), MAX_INDEX_BYTES, INDEX_TIMEOUT_S)
            index = PackIndex(data)
        except NotFound:
            return None
        except InvalidInput as problem:
            _log.warning("pack %s is not used: %s", pack_id.hex(), problem.message)
            return None
        if kept is not None:
            _keep(kept, data)
        return index

    def _forget_all_but(self, packs: Collection[bytes]) -> None:
        if self._kept is None:
            return
        self._kept.mkdir(parents=True, exist_ok=True)
        wanted = {f"{pack_id.hex()}.index" for pack_id in packs}
        for entry in os.scandir(self._kept):
            if entry.name.endswith(".index") and entry.name not in wanted:
                Path(entry.path).unlink(missing_ok=True)


def _keep(path: Path, data: bytes) -> None:
    """Not synced: an index that a crash damages is noticed and fetched again."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".index.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError as problem:
        _log.warning("%s is not kept: %s", path, problem)
