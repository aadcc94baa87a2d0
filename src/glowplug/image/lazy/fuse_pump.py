"""The daemon's inner loop: reads of what is here are hashed and answered by C++ threads, without the GIL.

One interpreter answers about 7,000 reads a second while it does nothing else, and an import of torch from
an empty cache makes 3,500 of them while it fetches. So ``native/fuse_pump.cpp`` reads the kernel's requests.
What it cannot answer from packs alone, or finds damaged there, it hands on unchanged: then
:class:`~glowplug.image.lazy.fuse_session.FuseSession` takes requests from here instead of the descriptor.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from array import array
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from glowplug.chunks.table import ChunkTable
from glowplug.kernel.native import load_library

_log = logging.getLogger(__name__)

_LIBRARY = Path(__file__).with_name("_fuse_pump.so")
_NOTICES = 256  # taken at once
_DETACH_TIMEOUT_MS = 2000  # a read of the disk may be under way


class PumpedBlob(Protocol):
    """What the pump shares of a blob: arrays with one entry a chunk, which never change their length.

    The pump marks places as verified (:data:`glowplug.image.lazy.blob.VERIFIED`) and counts in ``answered``.
    """

    node: int
    table: ChunkTable
    places: array[int]
    touched: bytearray
    answered: array[int]


class Notice(NamedTuple):
    """A read that was answered and was the first of some of these chunks."""

    node: int
    first: int
    last: int


class _Blob(ctypes.Structure):
    _fields_ = [
        ("node", ctypes.c_uint64),
        ("chunks", ctypes.c_uint64),
        ("starts", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("touched", ctypes.c_void_p),
        ("answered", ctypes.c_void_p),
    ]


class _Notice(ctypes.Structure):
    _fields_ = [("node", ctypes.c_uint64), ("first", ctypes.c_uint32), ("last", ctypes.c_uint32)]


class FusePump:
    """See the module. ``descriptor`` stays the caller's; ``packs`` is the SSD tier's folder of pack files.

    Safe to use from many threads, except that notices are for one. The threads end with the connection.
    """

    def __init__(self, descriptor: int, packs: Path, threads: int) -> None:
        """Raises OSError."""
        self._library = _load()
        self._pump = self._library.gp_pump_start(descriptor, os.fsencode(packs), threads)
        if not self._pump:
            raise OSError(ctypes.get_errno(), "the threads that answer reads cannot be started")
        self._lock = threading.Lock()
        # Both keep arrays in place while C++ has their addresses.
        self._shared: dict[int, object] = {}
        self._stuck: list[object] = []
        self._followed = 0
        self._caught_up = threading.Condition()

    def attach(self, blob: PumpedBlob) -> None:
        """Answer reads of this blob from now on. One without chunks has none that could be answered here."""
        if not len(blob.table):
            return
        table = blob.table
        arrays = (table.starts, table.sizes, table.ids, blob.places, blob.touched, blob.answered)
        views = [(ctypes.c_char * memoryview(shared).nbytes).from_buffer(shared) for shared in arrays]
        with self._lock:
            asked = _Blob(blob.node, len(blob.table), *map(ctypes.addressof, views))
            refused = self._library.gp_pump_attach(self._pump, ctypes.byref(asked))
            if refused:
                _log.error("reads of node %#x stay with Python: %s", blob.node, os.strerror(-refused))
                return
            self._shared[blob.node] = views

    def detach(self, node: int) -> None:
        """Hand on its reads from now on."""
        with self._lock:
            is_unused = self._library.gp_pump_detach(self._pump, node, _DETACH_TIMEOUT_MS)
            views = self._shared.pop(node, None)
            if not is_unused:
                self._stuck.append(views)
                _log.warning("node %#x is still being read; its tables stay in memory", node)

    def receive(self, buffer: bytearray) -> int:
        """Wait for a request that is not answered here. Its length; 0 once the connection has ended.

        Raises OSError where reading requests fails.
        """
        room = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        received: int = self._library.gp_pump_take(self._pump, room, len(buffer))
        if received < 0:
            raise OSError(-received, os.strerror(-received))
        return received

    def notices(self) -> Iterator[Notice]:
        """Every notice, as it comes, until the connection ends.

        One counts as followed when the next is asked for.
        """
        room = (_Notice * _NOTICES)()
        while count := self._library.gp_pump_notices(self._pump, room, _NOTICES):
            for notice in room[:count]:
                yield Notice(notice.node, notice.first, notice.last)
                with self._caught_up:
                    self._followed += 1
                    self._caught_up.notify_all()

    def wait_until_followed(self, timeout_s: float) -> bool:
        """Wait until every notice of reads answered so far was followed."""
        noticed: int = self._library.gp_pump_noticed(self._pump)
        with self._caught_up:
            return self._caught_up.wait_for(lambda: self._followed >= noticed, timeout_s)

    def close(self) -> None:
        """After the connection has ended, and nobody waits in a call of this: wait for the threads."""
        self._library.gp_pump_free(self._pump)
        self._shared.clear()
        self._stuck.clear()


@cache
def _load() -> ctypes.CDLL:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    return load_library(
        _LIBRARY,
        {
            "gp_pump_start": (pointer, [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]),
            "gp_pump_attach": (ctypes.c_int, [pointer, pointer]),
            "gp_pump_detach": (ctypes.c_int, [pointer, ctypes.c_uint64, ctypes.c_uint]),
            "gp_pump_take": (number, [pointer, pointer, size]),
            "gp_pump_notices": (number, [pointer, pointer, size]),
            "gp_pump_noticed": (ctypes.c_uint64, [pointer]),
            "gp_pump_free": (None, [pointer]),
        },
    )
