from __future__ import annotations

import struct

import pytest

from glowplug.image.origin.acl_text import pack_acl
from glowplug.types.errors import InvalidInput

NOBODY = 0xFFFFFFFF


def entries(packed: bytes) -> list[tuple[int, int, int]]:
    assert packed[:4] == struct.pack("<I", 2)
    return list(struct.iter_unpack("<HHI", packed[4:]))  # type: ignore[arg-type]


def test_an_acl_is_packed_in_the_order_that_the_kernel_wants() -> None:
    text = b"other::---\nmask::r-x,group::r--,user:1001:rw-,user:7:r--,user::rwx,group:5:--x"
    assert entries(pack_acl(text)) == [
        (0x01, 7, NOBODY), (0x02, 4, 7), (0x02, 6, 1001), (0x04, 4, NOBODY), (0x08, 1, 5), (0x10, 5, NOBODY),
        (0x20, 0, NOBODY),
    ]  # fmt: skip


def test_short_words_comments_and_the_fourth_field_are_understood() -> None:
    assert entries(pack_acl(b"u::rwx # owner\nu:lisa:r--:1001\ng::r--\no::r--\nm::r--"))[1] == (0x02, 4, 1001)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"#", b"user", b"user::", b"user::rwxr", b"user::wrx", b"user::rw", b"user:lisa:rwx",
        b"user:-1:rwx", b"user:4294967295:rwx", b"user:99999999999:rwx", b"mask:5:rwx", b"eve::rwx",
        b"a:b:c:d:e", b"\xff::rwx",
        b"user:1:r--," * 2000,
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="access control list"):
        pack_acl(text)
