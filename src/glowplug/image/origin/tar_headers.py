"""The 512-byte header of a tar entry: v7, ustar, GNU and star, and numbers too big for their octal field."""

from __future__ import annotations

from dataclasses import dataclass

from glowplug.image.origin.confine import refused
from glowplug.types.errors import InvalidInput

BLOCK_BYTES = 512
MAX_ID = 0xFFFFFFFE  # uid and gid; the one above means "none" to the kernel
MAX_MAJOR = 0xFFF
MAX_MINOR = 0xFFFFF
MAX_TIME_S = 1 << 40  # 34,000 years in either direction
MAX_FILE_BYTES = (1 << 63) - 1
_CHECKSUM = slice(148, 156)
_SIGNED_BIAS = 256  # what a byte above 127 counts less in the sums that some old programs wrote


@dataclass(frozen=True, slots=True)
class Header:
    """The fields as they stand in the block. ``type`` is one byte; names carry no padding."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_s: int
    target: bytes
    major: int
    minor: int


def parse_header(block: bytes) -> Header:
    """Read one. Raises InvalidInput for a wrong checksum and for numbers out of range."""
    _verify_checksum(block)
    name = _text(block[0:100])
    kind = block[156:157]
    magic = block[257:265]
    if magic.startswith(b"ustar\0"):
        width = 131 if block[508:512] == b"tar\0" else 155  # star keeps two more times in that field
        prefix = _text(block[345 : 345 + width])
        name = prefix + b"/" + name if prefix else name
    has_devices = magic.startswith(b"ustar") and kind in (b"3", b"4")
    return Header(
        name=name,
        type=kind,
        mode=header_number(block[100:108], name, "mode", maximum=MAX_FILE_BYTES) & 0o7777,
        uid=header_number(block[108:116], name, "uid", maximum=MAX_ID),
        gid=header_number(block[116:124], name, "gid", maximum=MAX_ID),
        size_bytes=header_number(block[124:136], name, "size", maximum=MAX_FILE_BYTES),
        mtime_s=header_number(block[136:148], name, "time", minimum=-MAX_TIME_S, maximum=MAX_TIME_S),
        target=_text(block[157:257]),
        major=header_number(block[329:337], name, "device", maximum=MAX_MAJOR) if has_devices else 0,
        minor=header_number(block[337:345], name, "device", maximum=MAX_MINOR) if has_devices else 0,
    )


def _verify_checksum(block: bytes) -> None:
    field = block[_CHECKSUM].strip(b" \0")
    plain = sum(block) - sum(block[_CHECKSUM]) + 8 * 0x20
    try:
        stated = int(field or b"0", 8)
    except ValueError:
        stated = -1
    if stated == plain:
        return
    outside = block[:148] + block[156:]
    if stated != plain - _SIGNED_BIAS * sum(byte > 127 for byte in outside):
        raise InvalidInput(
            "This is not a tar archive, or it is damaged: the checksum of an entry's header is wrong.",
            remedy="Get it again, or make it again.",
        )


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def header_number(field: bytes, name: bytes, what: str, *, minimum: int = 0, maximum: int) -> int:
    """A number field: octal digits, or with the top bit set a big-endian two's complement (GNU's)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        # 0x80 00.. is positive and 0xff ff.. negative: bit 6 of the first byte is the sign.
        value = value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    else:
        digits = field.partition(b"\0")[0].strip()
        if not all(0x30 <= byte <= 0x37 for byte in digits):
            raise refused(name, f"has a {what} that is not a number")
        value = int(digits, 8) if digits else 0
    if not minimum <= value <= maximum:
        raise refused(name, f"has an impossible {what}: {value}")
    return value
