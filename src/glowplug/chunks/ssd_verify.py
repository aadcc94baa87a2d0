"""Hashing again what the SSD tier holds, for `image verify`: disks lose bits without telling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

from glowplug.chunks import ssd_rows
from glowplug.chunks.chunk import Chunk, aligned
from glowplug.chunks.ssd_index import Index
from glowplug.chunks.ssd_reports import VerifyReport
from glowplug.chunks.ssd_rows import Body

Progress = Callable[[str, float], None]
"""Called with a line of text and how far it is, 0 to 1."""

_ROWS_PER_PAGE = 1024
_SAY_EVERY = 64
_EVER = 1 << 62


def verify_bodies(
    bodies: Iterable[Body],
    total_bytes: int,
    is_right: Callable[[Body], bool],
    progress: Progress | None,
    cancelled: threading.Event | None,
) -> VerifyReport:
    """Look at each."""
    chunks = done_bytes = damaged = room_bytes = 0
    for body in bodies:
        if cancelled is not None and cancelled.is_set():
            return VerifyReport(chunks, done_bytes, damaged, was_cancelled=True)
        damaged += not is_right(body)
        chunks += 1
        done_bytes += body.size_bytes
        room_bytes += aligned(body.size_bytes)
        if progress is not None and chunks % _SAY_EVERY == 0:
            progress(
                f"verified {chunks} chunks, {damaged} damaged", min(1.0, room_bytes / max(1, total_bytes))
            )
    return VerifyReport(chunks, done_bytes, damaged, was_cancelled=False)


def all_bodies(index: Index, used_until_s: int = _EVER) -> Iterator[Body]:
    """All that is committed and was not used since, by place, without holding a transaction open."""
    place = -1
    while page := index.read(
        partial(ssd_rows.after, place=place, used_until_s=used_until_s, limit=_ROWS_PER_PAGE)
    ):
        yield from page
        place = page[-1].place


def bodies_of(index: Index, chunks: Iterable[Chunk]) -> Iterator[Body]:
    """Those of these chunks that are committed."""
    rest = iter(chunks)
    while ids := list({chunk.id for chunk in islice(rest, _ROWS_PER_PAGE)}):
        yield from sorted(index.read(partial(ssd_rows.find_all, ids=ids)).values())
