"""Chunks that came together: their bytes are checked, and written to a pack, by one call into C++ for all.

A range of small chunks holds a hundred of them. One at a time, each hash and each write would give the GIL
away and wait for it again, while a dozen threads do the same. A single chunk is a run of one.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from glowplug.chunks.chunk import ID_BYTES, Chunk, aligned
from glowplug.kernel.native import load_library

_LIBRARY = Path(__file__).with_name("_chunk_run.so")
_SIMPLE = 0  # PyBUF_SIMPLE: bytes, one behind the other


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks, and where in ``data`` the bytes of each begin. They need not be in order, nor be right."""

    chunks: Sequence[Chunk]
    offsets: Sequence[int]
    data: Buffer

    @staticmethod
    def of(chunk: Chunk, data: Buffer) -> Run:
        """A single chunk."""
        return Run((chunk,), (0,), data)

    @property
    def room_bytes(self) -> int:
        """What they take in a pack."""
        return sum([aligned(chunk.size_bytes) for chunk in self.chunks])

    def body(self, number: int) -> memoryview:
        """The bytes of one: a view."""
        start = self.offsets[number]
        return memoryview(self.data)[start : start + self.chunks[number].size_bytes]

    def only(self, numbers: Sequence[int]) -> Run:
        """These of them."""
        chunks = [self.chunks[number] for number in numbers]
        return Run(chunks, [self.offsets[number] for number in numbers], self.data)

    def parts(self, room_bytes: int) -> Iterator[Run]:
        """All of them, in order, as runs that take at most so much room, or hold one chunk."""
        begin, taken_bytes = 0, 0
        for number, chunk in enumerate(self.chunks):
            size_bytes = aligned(chunk.size_bytes)
            if taken_bytes + size_bytes > room_bytes and number > begin:
                yield Run(self.chunks[begin:number], self.offsets[begin:number], self.data)
                begin, taken_bytes = number, 0
            taken_bytes += size_bytes
        if begin < len(self.chunks):
            yield Run(self.chunks[begin:], self.offsets[begin:], self.data)

    def wrong(self) -> list[int]:
        """The numbers of those that are not what their names say, or not wholly within the data."""
        ids = b"".join([chunk.id for chunk in self.chunks])
        if len(ids) != ID_BYTES * len(self.chunks):
            raise ValueError(f"a chunk's name has {ID_BYTES} bytes")
        is_right = array("B", bytes(len(self.chunks)))
        with self._shared() as run:
            wrong = _library().gp_run_check(run, ids, is_right.buffer_info()[0])
        return [number for number, right in enumerate(is_right) if not right] if wrong else []

    def write(self, file: int, offset: int) -> None:
        """Write them one behind the other, each padded to whole blocks with zeros. Raises OSError."""
        with self._shared() as run:
            failed = -_library().gp_run_write(run, file, offset)
        if failed:
            raise OSError(failed, os.strerror(failed))

    @contextmanager
    def _shared(self) -> Iterator[Any]:
        """As C++ sees it, within the block: its memory stays where it is as long."""
        offsets = array("Q", self.offsets)
        sizes = array("I", [chunk.size_bytes for chunk in self.chunks])
        view = _View()
        _get_buffer(self.data, ctypes.byref(view), _SIMPLE)
        try:
            columns = (offsets.buffer_info()[0], sizes.buffer_info()[0])
            yield ctypes.byref(_Run(view.buf, view.len, len(self.chunks), *columns))
        finally:
            _release_buffer(ctypes.byref(view))


class _Run(ctypes.Structure):
    """``gp_run`` of ``native/chunk_run.h``."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("data_bytes", ctypes.c_uint64),
        ("chunks", ctypes.c_uint64),
        ("offsets", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
    ]


class _View(ctypes.Structure):
    """``Py_buffer``, as the stable ABI fixes it: ctypes gives no address of memory that is read only."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyBuffer_Release", ctypes.pythonapi))


@cache
def _library() -> ctypes.CDLL:
    pointer = ctypes.c_void_p
    return load_library(
        _LIBRARY,
        {
            "gp_run_check": (ctypes.c_uint64, [pointer, ctypes.c_char_p, pointer]),
            "gp_run_write": (ctypes.c_int, [pointer, ctypes.c_int, ctypes.c_uint64]),
        },
    )
