from __future__ import annotations

import gzip
import io
import os
import random
import resource
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.origin.origin_kit import at, read
from tests.image.origin.tars import (
    END,
    NEW_SPARSE,
    block,
    folder,
    hard_link,
    link,
    member,
    octal,
    pack,
    padded,
    pax,
    sound_archives,
    unpack,
)

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.tar import TarOrigin
from glowplug.types.errors import InvalidInput

MB = 1_000_000
SMALL = ArchiveLimits(unpacked_bytes=20 * MB, logical_bytes=1 << 40, entries=1000, metadata_bytes=MB)
SPARSE_SIZE = (b"GNU.sparse.size", b"100")


def sparse_map(text: bytes, size_bytes: int) -> bytes:
    return (
        pax(SPARSE_SIZE, (b"GNU.sparse.map", text))
        + block(size=octal(size_bytes))
        + padded(bytes(size_bytes))
        + END
    )


def long_name(name: bytes) -> bytes:
    return block(kind=b"L", size=octal(len(name) + 1)) + padded(name + b"\0")


def endless_old_map() -> bytes:
    return block(kind=b"S", at482=b"\1", at483=octal(100)) + (bytes(504) + b"\1" + bytes(7)) * 50


def new_sparse(body: bytes) -> bytes:
    return pax(*NEW_SPARSE) + block(size=octal(len(body))) + padded(body) + END


HOSTILE = {
    "upwards": pack([member("../etc/passwd", b"x")]),
    "upwards inside": pack([member("a/../../etc/passwd", b"x")]),
    "link then file through it": pack([link("a", "/etc"), member("a/passwd", b"x")]),
    "link then link through it": pack([link("a", ".."), link("a/b", ".."), member("a/b/c", b"x")]),
    "link then folder below it": pack([link("a", "b"), folder("b"), folder("a/c")]),
    "link to itself then file through it": pack([link("a", "a"), member("a/b")]),
    "file below a file": pack([member("a", b"x"), member("a/b", b"x")]),
    "file below a device": pack([member("a", kind=tarfile.CHRTYPE, devmajor=1), member("a/b")]),
    "hard link outside": pack([hard_link("a", "/etc/shadow")]),
    "hard link upwards": pack([hard_link("a", "../../etc/shadow")]),
    "hard link through a link": pack([link("a", "/etc"), hard_link("b", "a/shadow")]),
    "hard link forward": pack([hard_link("a", "b"), member("b", b"x")]),
    "hard links in a circle": pack([hard_link("a", "b"), hard_link("b", "a")]),
    "hard link to a folder": pack([folder("a"), hard_link("a/b", "a")]),
    "hard link without a target": block(b"a", b"1") + END,
    "symbolic link without a target": block(b"a", b"2") + END,
    "root as a file": pack([member("./", b"")])[:0] + block(b".", b"0") + END,
    "no name": block(b"") + END,
    "name too long": pack([member("n" * 256)]),
    "path too long": pack([member("d/" * 2100 + "x")]),
    "target too long": pack([link("a", "t" * 4096)]),
    "unknown kind": block(kind=b"Z") + END,
    "rest of a volume": block(kind=b"M") + END,
    "negative size": block(size=b"\xff" * 11 + b"\x00") + END,
    "size beyond 63 bits": block(size=b"\x80" + b"\xff" * 11) + END,
    "size of letters": block(size=b"0000000zzzz\0") + END,
    "negative uid": block(at108=b"\xff" * 8) + END,
    "uid for nobody": block(at108=b"\x80\0\0\0\xff\xff\xff\xff") + END,
    "time beyond all years": block(at136=b"\x80" + b"\xff" * 11) + END,
    "device number too big": block(kind=b"3", at329=b"7777777\0") + END,
    "size of an exabyte": block(size=b"\x80\0\0\0\x10" + bytes(7)) + END,
    "wrong checksum": bytes([0x41]) + block()[1:] + END,
    "no archive": b"hello, world" * 100,
    "one byte": b"x",
    "nothing": b"",
    "no end": block(),
    "header at the end": pax((b"uid", b"1")),
    "header before the end": pax((b"uid", b"1")) + END,
    "two extended headers": pax((b"uid", b"1")) * 2 + block() + END,
    "two long names": long_name(b"a") * 2 + block() + END,
    "two names that differ": long_name(b"a") + pax((b"path", b"b")) + block() + END,
    "extended header of 2 MiB": block(kind=b"x", size=octal(2 << 20)) + bytes(2 << 20) + block() + END,
    "long name of 1 GiB": block(kind=b"L", size=octal(1 << 30)) + bytes(4096),
    "record too long": block(kind=b"x", size=octal(8)) + padded(b"99 a=bc\n") + block() + END,
    "record too short": block(kind=b"x", size=octal(8)) + padded(b"3 a=bcd\n") + block() + END,
    "record of length zero": block(kind=b"x", size=octal(8)) + padded(b"0 a=bcd\n") + block() + END,
    "record without a length": block(kind=b"x", size=octal(8)) + padded(b"a=bcdef\n") + block() + END,
    "record without a key": block(kind=b"x", size=octal(6)) + padded(b"6 =bc\n") + block() + END,
    "record without an end": block(kind=b"x", size=octal(6)) + padded(b"6 a=bc") + block() + END,
    "size with a sign": pax((b"size", b"-5")) + block() + END,
    "size of hundred digits": pax((b"size", b"9" * 100)) + block() + END,
    "time of words": pax((b"mtime", b"noon")) + block() + END,
    "time beyond all years in text": pax((b"mtime", b"9" * 19)) + block() + END,
    "attribute that is not base64": pax((b"LIBARCHIVE.xattr.user.a", b"?")) + block() + END,
    "attribute of 64 KiB": pax((b"SCHILY.xattr.user.a", bytes(65536))) + block() + END,
    "attribute with a long name": pax((b"SCHILY.xattr.user." + b"a" * 300, b"")) + block() + END,
    "acl of names": pax((b"SCHILY.acl.access", b"user::rwx,user:eve:rwx")) + block() + END,
    "acl of nothing": pax((b"SCHILY.acl.access", b"?")) + block() + END,
    "sparse file whose ranges overlap": sparse_map(b"0,10,5,10", 20),
    "sparse file whose ranges go back": sparse_map(b"50,10,0,10", 20),
    "sparse file beyond its end": sparse_map(b"95,10", 10),
    "sparse file with too little data": sparse_map(b"0,10,20,10", 10),
    "sparse file with too much data": sparse_map(b"0,10", 30),
    "sparse file with half a range": sparse_map(b"0,10,20", 10),
    "sparse file with a negative range": sparse_map(b"0,-10", 10),
    "sparse file without a size": pax((b"GNU.sparse.map", b"")) + block() + END,
    "sparse file of an unknown format": pax((b"GNU.sparse.major", b"2"), SPARSE_SIZE) + block() + END,
    "sparse map of words": new_sparse(padded(b"one\ntwo\n")),
    "sparse map without an end": new_sparse(b"1" * 512),
    "sparse map longer than the file": new_sparse(b"0001000\n" + b"0\n1\n" * 126),
    "sparse map of a billion ranges": new_sparse(padded(b"1000000000\n")),
    "old sparse file that goes on for ever": endless_old_map(),
    "two hundred global headers": b"".join(
        pax((b"SCHILY.xattr.user.%d" % number, bytes(60_000)), kind=b"g") for number in range(200)
    ),
    "a bomb of holes": b"".join(
        pax((b"GNU.sparse.size", b"%d" % (1 << 39)), (b"GNU.sparse.map", b"")) + block(b"%d" % number)
        for number in range(5)
    ),
    "a bomb of entries": pack(member(str(number)) for number in range(1001)),
    "a bomb of parents": pack([member("/".join(["d"] * 1500))]),
    "a bomb of names": pack(link(f"{number}", "t" * 4000) for number in range(300)),
    "a bomb of zeros": gzip.compress(block(size=octal(30 * MB)) + bytes(30 * MB) + END),
    "a bomb behind the end": gzip.compress(pack([member("a")]) + bytes(30 * MB)),
    "an archive cut off while packed": gzip.compress(pack([member("a", os.urandom(9999))]))[:-30],
    "an archive with a wrong checksum while packed": gzip.compress(pack([member("a")]))[:-5] + b"12345",
}  # fmt: skip


@pytest.mark.parametrize("packed", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_with_a_reason(packed: bytes) -> None:
    with pytest.raises(InvalidInput) as refusal:
        unpack(packed, SMALL)
    assert refusal.value.remedy
    assert refusal.value.message.isprintable()


def test_an_archive_cut_off_anywhere_is_refused() -> None:
    packed = sound_archives()[0]
    end = packed.rstrip(b"\0").rfind(b"ustar") // 512 * 512 + 512
    for length in [*range(0, end, 61), *range(0, end + 1, 512)]:
        with pytest.raises(InvalidInput):
            unpack(packed[:length])


def mutations(packed: bytes, count: int) -> Iterator[bytes]:
    generator = random.Random(20)
    for _ in range(count):
        mutated = bytearray(packed)
        for _ in range(generator.choice([1, 1, 2, 5])):
            at = generator.randrange(len(mutated))
            mutated[at] = generator.choice([0, 0x20, 0x2F, 0x30, 0x37, 0x80, 0xFF, generator.randrange(256)])
        block_at = generator.randrange(len(mutated) // 512) * 512
        mutated[block_at : block_at + 512] = with_checksum(bytes(mutated[block_at : block_at + 512]))
        yield bytes(mutated)


def with_checksum(header: bytes) -> bytes:
    """Otherwise nearly every mutation would end at the checksum."""
    summed = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(summed) + header[156:]


def test_mutated_archives_are_trees_or_refused() -> None:
    for seed in sound_archives():
        unpack(seed)
        for mutated in mutations(seed, 250):
            try:
                unpack(mutated, SMALL)
            except InvalidInput:
                continue


@given(noise=st.binary(max_size=3000))
def test_noise_is_refused_or_empty(noise: bytes) -> None:
    try:
        tree, _ = unpack(noise)
    except InvalidInput:
        return
    assert not tree.root.children
    assert not any(noise[:512])


def test_an_archive_is_read_in_little_memory() -> None:
    """A source of 600 MB that exists nowhere, with a file that compresses to nothing."""

    class Endless(io.RawIOBase):
        left = 600 * MB
        head = block(size=octal(600 * MB // 512 * 512))

        def read(self, size: int = -1, /) -> bytes:
            if self.head:
                data, self.head = self.head, b""
                return data
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = Endless()
    source.left += 1024
    tree, _ = read(TarOrigin(source))
    assert at(tree, b"file").extents == ()
    assert at(tree, b"file").size_bytes > 500 * CHUNK_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
