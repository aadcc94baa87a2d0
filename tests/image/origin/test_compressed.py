from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import resource
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.origin.compressed import Unpacked
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.types.errors import InvalidInput

LIMITS = ArchiveLimits()
MB = 1_000_000
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
every_format = pytest.mark.parametrize("pack", COMPRESSORS.values(), ids=COMPRESSORS)
SKIPPABLE_FRAME = bytes.fromhex("502a4d18") + (5).to_bytes(4, "little") + b"stuff"


class Drops:
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes, size: int = 7) -> None:
        self.stream = io.BytesIO(data)
        self.size = size

    def read(self, size: int, /) -> bytes:
        return self.stream.read(min(size, self.size))


def unpack(data: bytes, limits: ArchiveLimits = LIMITS, size: int = 5000) -> bytes:
    unpacked = Unpacked(io.BytesIO(data), limits)
    parts = []
    while part := unpacked.read(size):
        assert len(part) <= size
        parts.append(part)
    assert unpacked.read_bytes == len(data)
    return b"".join(parts)


CONTENT = os.urandom(300_000) + bytes(600_000) + b"the end"


@every_format
def test_every_format_is_told_by_its_first_bytes(pack: Callable[[bytes], bytes]) -> None:
    assert unpack(pack(CONTENT)) == CONTENT


def test_what_is_not_compressed_passes_through() -> None:
    assert unpack(CONTENT) == CONTENT
    assert unpack(b"") == b""
    assert unpack(b"BZ") == b"BZ"


@every_format
def test_several_members_are_one_stream(pack: Callable[[bytes], bytes]) -> None:
    assert unpack(pack(b"first") + pack(b"") + pack(CONTENT)) == b"first" + CONTENT


@every_format
def test_a_stream_may_come_in_drops(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b"first") + pack(CONTENT[-700_000:])
    unpacked = Unpacked(Drops(packed), LIMITS)
    got = b"".join(iter(lambda: unpacked.read(9999), b""))
    assert got == b"first" + CONTENT[-700_000:]


@every_format
def test_zeros_may_follow(pack: Callable[[bytes], bytes]) -> None:
    assert unpack(pack(CONTENT) + bytes(100_000)) == CONTENT


@every_format
@pytest.mark.parametrize(
    "rest", [b"garbage", b"x", b"\0\0garbage", b"\x1f\x8b", gzip.compress(b"", mtime=0) + b"?"]
)
def test_nothing_else_may_follow(pack: Callable[[bytes], bytes], rest: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be unpacked"):
        unpack(pack(b"content") + rest)


@every_format
def test_what_is_cut_off_anywhere_is_refused(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(os.urandom(200))
    for length in range(6, len(packed)):
        with pytest.raises(InvalidInput, match="cannot be unpacked"):
            unpack(packed[:length])


@every_format
def test_a_wrong_checksum_is_refused(pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(b"content" * 100))
    middle = len(packed) // 2
    packed[middle] ^= 0xFF
    with pytest.raises(InvalidInput):
        unpack(bytes(packed))


def test_zstd_frames_to_be_skipped_are_skipped() -> None:
    pack = COMPRESSORS["zstd"]
    packed = SKIPPABLE_FRAME + pack(b"one") + SKIPPABLE_FRAME + pack(b"two") + SKIPPABLE_FRAME
    assert unpack(packed) == b"onetwo"


def test_a_zstd_window_that_would_eat_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(os.urandom(1000)) + packer.flush()
    with pytest.raises(InvalidInput, match="cannot be unpacked"):
        unpack(packed)


def gzip_bomb(size_bytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(10 * MB)) for _ in range(size_bytes // (10 * MB))) + packer.flush()


BOMBS = {
    "gzip": gzip_bomb(200 * MB),
    "bzip2": bz2.compress(bytes(200 * MB)),
    "zstd": COMPRESSORS["zstd"](bytes(200 * MB)),
}
every_bomb = pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)


def test_a_bomb_is_refused_by_what_comes_out() -> None:
    with pytest.raises(InvalidInput, match="more than 1000000 bytes when unpacked"):
        unpack(BOMBS["gzip"], ArchiveLimits(unpacked_bytes=MB))


@every_bomb
def test_a_bomb_is_refused_by_its_ratio(bomb: bytes) -> None:
    with pytest.raises(InvalidInput, match="for each byte"):
        unpack(bomb, ArchiveLimits(ratio=100, ratio_grace_bytes=MB))


def test_a_well_packed_small_archive_is_no_bomb() -> None:
    assert len(unpack(gzip_bomb(50 * MB), size=MB)) == 50 * MB


@every_bomb
def test_a_bomb_never_lies_in_memory(bomb: bytes) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Unpacked(io.BytesIO(bomb), LIMITS).drain()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 150_000


@given(data=st.binary(max_size=200), at=st.integers(0, 500), flip=st.integers(1, 255))
def test_damage_is_an_error_or_harmless(data: bytes, at: int, flip: int) -> None:
    for pack in COMPRESSORS.values():
        packed = bytearray(pack(data * 3))
        packed[at % len(packed)] ^= flip
        try:
            unpack(bytes(packed))
        except InvalidInput:
            continue
