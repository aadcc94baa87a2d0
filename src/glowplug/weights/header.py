"""The header of a safetensors file: which tensor lies where. Nothing is believed before it is checked.

The format is Hugging Face's (https://github.com/huggingface/safetensors#format): eight bytes, little-endian,
with the length of a JSON object, that object, and then the tensors' bytes, without holes. What this module
lets through the library lets through, too; it refuses in addition headers above :data:`MAX_HEADER_BYTES`
(the library stops at 100 MB, which as Python objects are gigabytes) and names that occur twice.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from glowplug.types.errors import InvalidInput

MAX_HEADER_BYTES = 32 << 20
"""90,000 tensors, more than any published model has in one file, need 11 MB."""
LENGTH_BYTES = 8
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64,
    "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_METADATA = "__metadata__"
_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = (1 << 63) - 1  # what torch counts in
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Entry:
    """One tensor: its bytes are ``begin`` to ``end`` of the file, counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """All tensors of a file in the order of their bytes, and what else its author wrote there."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]


def read_header(descriptor: int, name: str) -> Header:
    """The header of an open file. Raises InvalidInput, which calls the file ``name``, or OSError."""
    size_bytes = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, LENGTH_BYTES, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > size_bytes - LENGTH_BYTES:
        raise _invalid(name, f"it is cut off: {size_bytes} bytes do not hold its header")
    if length > MAX_HEADER_BYTES:
        raise _invalid(name, f"its header would have {length} bytes, and {MAX_HEADER_BYTES} are the most")
    return parse_header(_exactly(descriptor, length, LENGTH_BYTES, name), size_bytes, name)


def parse_header(text: bytes, size_bytes: int, name: str) -> Header:
    """The header ``text`` of a file that has ``size_bytes`` in all. Raises InvalidInput."""
    if not text.startswith(b"{"):
        raise _invalid(name, "its header is no JSON object: it may be another format")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, f"its header is malformed: {error}") from error
    metadata = content.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(name, "its metadata is not made of text")
    start = LENGTH_BYTES + len(text)
    entries = sorted(
        (_entry(tensor, described, start, name) for tensor, described in content.items()),
        key=lambda entry: (entry.begin, entry.end),
    )
    end = start
    for entry in entries:
        if entry.begin != end:
            what = "overlaps another" if entry.begin < end else "leaves a hole before it"
            raise _invalid(name, f"tensor {_shown(entry.name)} {what}")
        end = entry.end
    if end != size_bytes:
        what = "it is cut off" if end > size_bytes else "bytes follow its last tensor"
        raise _invalid(name, f"{what}: its header tells of {end} bytes, it has {size_bytes}")
    return Header(tuple(entries), metadata)


def _entry(tensor: str, described: Any, start: int, name: str) -> Entry:
    if not isinstance(described, dict) or not described.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _invalid(name, f"tensor {_shown(tensor)} lacks dtype, shape or data_offsets")
    if not _is_text(tensor):
        raise _invalid(name, f"a tensor's name, {_shown(tensor)}, is no valid text")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _invalid(name, f"tensor {_shown(tensor)} has the unknown dtype {_shown(dtype)}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _invalid(name, f"tensor {_shown(tensor)} has the impossible shape {_shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(name, f"tensor {_shown(tensor)} lies at {_shown(offsets)}, which is no range")
    size_bits = DTYPE_BITS[dtype] * _elements(shape, tensor, name)
    if (offsets[1] - offsets[0]) * 8 != size_bits:
        raise _invalid(
            name,
            f"tensor {_shown(tensor)} has {offsets[1] - offsets[0]} bytes, but {dtype} {_shown(shape)} "
            f"needs {size_bits / 8:g}",
        )
    return Entry(tensor, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _elements(shape: list[int], tensor: str, name: str) -> int:
    """The product; the part without zeros must be countable, too, as torch makes strides of it."""
    product = 1
    for count in shape:
        product *= max(count, 1)
        if product > _MAX_ELEMENTS:
            raise _invalid(name, f"tensor {_shown(tensor)} has the impossible shape {_shown(shape)}")
    return 0 if 0 in shape else product


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MAX_ELEMENTS for value in values
    )


def _is_text(value: str) -> bool:
    """JSON can write half of a character, which UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _exactly(descriptor: int, length: int, offset: int, name: str) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise _invalid(name, "it became shorter while its header was read")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _shown(value: object) -> str:
    """A hostile name may have millions of characters."""
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str | list) else value)
    return text if len(text) <= 2 * _SHOWN_CHARACTERS else text[: 2 * _SHOWN_CHARACTERS] + ".."


def _invalid(name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{name} is no usable safetensors file: {why}.",
        remedy="Copy it again from where it came from, and compare its checksum.",
        file=name,
    )
