"""The words of /dev/fuse: layouts as the kernel's header has them, and no request that breaks the parser."""

from __future__ import annotations

import errno
import stat
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.lazy import fuse_protocol as protocol
from glowplug.image.lazy.fuse_protocol import Attributes, DirectoryEntry, Header, InitAsked, Opcode
from glowplug.types.errors import InvalidInput

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def request(opcode: int, body: bytes, unique: int = 7, node: int = 1) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


@given(opcode=U32, unique=U64, node=U64, uid=U32, gid=U32, pid=U32, body=st.binary(max_size=64))
def test_a_header_reads_back_as_it_was_written(
    opcode: int, unique: int, node: int, uid: int, gid: int, pid: int, body: bytes
) -> None:
    raw = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, uid, gid, pid, 0, 0) + body
    assert protocol.parse_header(raw, len(raw)) == Header(len(raw), opcode, unique, node, uid, gid, pid)


@pytest.mark.parametrize("received", [0, 1, 39, 41, 1000])
def test_a_request_that_is_not_as_long_as_it_says_is_refused(received: int) -> None:
    raw = request(Opcode.READ, b"")
    with pytest.raises(InvalidInput):
        protocol.parse_header(raw, received)


@given(st.binary(max_size=200))
def test_no_body_makes_a_parser_do_anything_but_refuse_it(body: bytes) -> None:
    view = memoryview(body)
    for parse in (
        protocol.parse_init,
        protocol.parse_read,
        protocol.parse_open_flags,
        protocol.parse_name,
        protocol.parse_get_xattr,
        protocol.parse_list_xattr,
    ):
        with suppress(InvalidInput):
            parse(view)


@pytest.mark.parametrize("body", [b"", b"\0", b"name without end", b"x" * 1025 + b"\0"])
def test_a_name_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        protocol.parse_name(memoryview(body))


def test_a_name_ends_at_its_zero() -> None:
    assert protocol.parse_name(memoryview(b"name\0rest\0")) == b"name"


@pytest.mark.parametrize(("offset", "size"), [(0, (1 << 20) + 1), (1 << 63, 4096), (0, 2**32 - 1)])
def test_a_read_beyond_all_bounds_is_refused(offset: int, size: int) -> None:
    body = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
    with pytest.raises(InvalidInput):
        protocol.parse_read(memoryview(body))


@pytest.mark.parametrize(
    ("packed", "size_bytes"),
    [
        (protocol.pack_attributes(Attributes(2, stat.S_IFREG), 1), 16 + 88),
        (protocol.pack_entry(2, Attributes(2, stat.S_IFREG), 1), 40 + 88),
        (protocol.pack_open(0, 0), 16),
        (protocol.pack_statfs(1, 1), 80),
        (protocol.pack_xattr_size(1), 8),
        (protocol.pack_init(InitAsked(7, 41, 1 << 17, 0xFFFFFFFF), protocol.DEFAULT_FLAGS), 64),
        (protocol.pack_answer_header(1, 0), 16),
        (protocol.pack_error(1, errno.EIO), 16),
        (protocol.RESEND_NOTICE, 16),
    ],
)
def test_answers_have_the_sizes_of_the_kernels_structures(packed: bytes, size_bytes: int) -> None:
    assert len(packed) == size_bytes


def test_an_error_is_a_negative_number_in_the_answers_head() -> None:
    assert struct.unpack("<IiQ", protocol.pack_error(9, errno.EIO)) == (16, -errno.EIO, 9)


def test_times_before_1970_survive() -> None:
    packed = protocol.pack_attributes(Attributes(2, stat.S_IFREG, modified=(-5, 7)), 1)
    assert struct.unpack_from("<q", packed, 16 + 32) == (-5,)
    assert struct.unpack_from("<I", packed, 16 + 52) == (7,)


def test_no_ability_is_claimed_that_the_kernel_did_not_offer() -> None:
    packed = protocol.pack_init(InitAsked(7, 36, 0, protocol.InitFlag.MAX_PAGES), protocol.DEFAULT_FLAGS)
    assert struct.unpack_from("<IIII", packed) == (7, 36, 0, protocol.InitFlag.MAX_PAGES)


@pytest.mark.parametrize("version", [(6, 99), (7, 30)])
def test_a_kernel_that_is_too_old_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="Linux"):
        protocol.pack_init(InitAsked(*version, 0, 0), 0)


@given(
    names=st.lists(st.binary(min_size=1, max_size=255), max_size=20),
    room_bytes=st.integers(0, 3000),
)
def test_a_folders_entries_fill_the_room_and_no_more(names: list[bytes], room_bytes: int) -> None:
    entries = [DirectoryEntry(100 + at, at + 1, stat.S_IFREG | 0o644, name) for at, name in enumerate(names)]
    packed = protocol.pack_directory(entries, room_bytes)
    assert len(packed) <= room_bytes
    assert _entries(packed) == entries_as_read(entries)[: len(_entries(packed))]
    rest = entries[len(_entries(packed)) :]
    assert not rest or len(packed) + 24 + (len(rest[0].name) + 7) // 8 * 8 > room_bytes


def entries_as_read(entries: list[DirectoryEntry]) -> list[tuple[int, int, int, bytes]]:
    return [(entry.inode, entry.next_offset, 8, entry.name) for entry in entries]


def _entries(packed: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    at = 0
    while at < len(packed):
        inode, next_offset, length, kind = struct.unpack_from("<QQII", packed, at)
        found.append((inode, next_offset, kind, packed[at + 24 : at + 24 + length]))
        at += 24 + (length + 7) // 8 * 8
    return found
