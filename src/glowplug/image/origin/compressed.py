"""Unpacks a stream, whatever it is compressed with, without ever holding much of it.

Told apart by their first bytes: gzip, bzip2, xz, zstd, or nothing. Streams of several members, as parallel
compressors and lazily loadable layers have them, are one stream. Output is bounded (ArchiveLimits), a member
that is cut off or fails its checksum is an error, and so is anything but zeros after the last one.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

import zstandard

from glowplug.image.origin.limits import ArchiveLimits, over_limit
from glowplug.image.origin.port import ByteStream
from glowplug.types.errors import InvalidInput

_INPUT_BYTES = 64 << 10
_OUTPUT_BYTES = 256 << 10
_ZSTD_STEP_BYTES = 4 << 10  # zstd cannot bound its output: 4 bytes of input may mean 128 KiB, so 128 MiB here
_WINDOW_BYTES = 128 << 20  # what `zstd --long` needs, and the default bound of its own decompressor
_XZ_MEMORY_BYTES = 256 << 20
_MAGIC_BYTES = 6


class _Codec(Protocol):
    """One member. ``unused_data`` is what follows it, once ``eof`` is set."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """zlib's object in the shape that those of bz2 and lzma have."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._member.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._member.decompress(self._member.unconsumed_tail + data, max_length)


class _Zstd:
    """zstandard's object in that shape, fed in small steps."""

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
        self._input = b""
        self._at = 0

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data + self._input[self._at :]

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._input)

    def decompress(self, data: bytes, _max_length: int) -> bytes:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0
        step = self._input[self._at : self._at + _ZSTD_STEP_BYTES]
        self._at += len(step)
        return self._frame.decompress(step)


_BY_MAGIC: tuple[tuple[bytes, Callable[[], _Codec]], ...] = (
    (b"\x1f\x8b", _Gzip),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)),
    (b"\x28\xb5\x2f\xfd", _Zstd),
    *((bytes([0x50 + i]) + b"\x2a\x4d\x18", _Zstd) for i in range(16)),  # a skippable frame comes first
)


class Unpacked:
    """What ``stream`` is, unpacked. Raises InvalidInput from ``read`` for damage and for bombs."""

    def __init__(self, stream: ByteStream, limits: ArchiveLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._read_bytes = 0
        self._unpacked_bytes = 0
        self._input = self._first_bytes()
        self._make = _codec_of(self._input)
        self._codec = self._make() if self._make else None
        self._spare = b""
        self._spare_at = 0

    @property
    def read_bytes(self) -> int:
        """How much of the packed stream was read."""
        return self._read_bytes

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""
        if self._spare_at >= len(self._spare):
            self._spare, self._spare_at = self._next(), 0
            self._count(len(self._spare))
        piece = self._spare[self._spare_at : self._spare_at + size]
        self._spare_at += len(piece)
        return piece

    def drain(self) -> None:
        """Read to the end, so that every checksum was checked and the source was read whole."""
        while self.read(_OUTPUT_BYTES):
            pass

    def _next(self) -> bytes:
        if self._make is None:
            return self._take_input() or self._fetch()
        while self._codec is not None:
            if self._codec.eof:
                self._start_next_member(self._codec.unused_data)
                continue
            data = b""
            if self._codec.needs_input:
                data = self._take_input() or self._fetch()
                if not data:
                    raise _damaged("it is cut off")
            piece = _decompress(self._codec, data)
            if piece:
                return piece
        return b""

    def _start_next_member(self, rest: bytes) -> None:
        """Only zeros may follow the last member: tapes and block devices pad."""
        rest = rest.lstrip(b"\0")
        while len(rest) < _MAGIC_BYTES:
            more = self._fetch()
            if not more:
                break
            rest = (rest + more).lstrip(b"\0")
        self._codec = None
        if not rest:
            return
        if self._make is None or _codec_of(rest) is not self._make:
            raise _damaged("something else follows its end")
        self._codec, self._input = self._make(), rest

    def _first_bytes(self) -> bytes:
        data = b""
        while len(data) < _MAGIC_BYTES:
            more = self._fetch()
            if not more:
                break
            data += more
        return data

    def _take_input(self) -> bytes:
        data, self._input = self._input, b""
        return data

    def _fetch(self) -> bytes:
        data = self._stream.read(_INPUT_BYTES)
        self._read_bytes += len(data)
        return data

    def _count(self, unpacked_bytes: int) -> None:
        self._unpacked_bytes += unpacked_bytes
        limits = self._limits
        if self._unpacked_bytes > limits.unpacked_bytes:
            raise over_limit("bytes when unpacked", limits.unpacked_bytes)
        excess = self._unpacked_bytes > limits.ratio_grace_bytes
        if excess and self._unpacked_bytes > limits.ratio * self._read_bytes:
            raise over_limit("bytes for each byte of its packed form", limits.ratio)


def _codec_of(data: bytes) -> Callable[[], _Codec] | None:
    return next((make for magic, make in _BY_MAGIC if data.startswith(magic)), None)


def _decompress(codec: _Codec, data: bytes) -> bytes:
    try:
        return codec.decompress(data, _OUTPUT_BYTES)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError) as problem:
        raise _damaged(str(problem)) from problem


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(f"This archive cannot be unpacked: {why}.", remedy="Get it again, or make it again.")
