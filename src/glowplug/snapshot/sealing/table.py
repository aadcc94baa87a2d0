"""What tells how sealed files are opened: their names and lengths, and the seal of every chunk.

It is sealed itself and kept beside them, as the file :data:`TABLE_NAME`; whoever has no key learns which one
it would take. The format is in ``docs/snapshot-sealing.md``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.snapshot.sealing.cipher import IV_BYTES, TAG_BYTES, Seal, Sealer, WrongSeal
from glowplug.snapshot.sealing.keys import KEY_ID_PATTERN, KeyRing, SealingKey
from glowplug.types.errors import InvalidInput

TABLE_NAME = "seals"
MAX_TABLE_BYTES = 256 << 20
PURPOSE = "table"

_MAGIC = b"GPSEALS1"
_KEY_ID_BYTES = 8
_HEAD_BYTES = len(_MAGIC) + _KEY_ID_BYTES
_FILE = struct.Struct("<HQI")  # length of the name, of the file, number of chunks
_CHUNK = struct.Struct(f"<I{IV_BYTES}s{TAG_BYTES}s")
_HOLE = (bytes(IV_BYTES), bytes(TAG_BYTES))


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """Some bytes of a file, one chunk of the content store. Without a seal it is zeros, and a hole."""

    size_bytes: int
    seal: Seal | None


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One file: its own name, and what it is made of, in order. Which file it is kept as its place tells."""

    name: str
    size_bytes: int
    chunks: tuple[SealedChunk, ...]


def sealed_name(number: int) -> str:
    """What the file of this number is called where it is sealed."""
    return f"{number:04d}"


def encode_table(files: Sequence[SealedFile], key: SealingKey) -> bytes:
    """The sealed table."""
    parts = [struct.pack("<I", len(files))]
    for file in files:
        name = file.name.encode("utf-8")
        parts += [_FILE.pack(len(name), file.size_bytes, len(file.chunks)), name]
        for chunk in file.chunks:
            iv, tag = _HOLE if chunk.seal is None else (chunk.seal.iv, chunk.seal.tag)
            parts.append(_CHUNK.pack(chunk.size_bytes, iv, tag))
    head = _MAGIC + key.id.encode("ascii")
    seal, sealed = Sealer(key, PURPOSE).seal_small(b"".join(parts), head)
    return head + seal.iv + seal.tag + sealed


def decode_table(raw: bytes, keys: KeyRing, what: str) -> tuple[list[SealedFile], SealingKey]:
    """The files, in the order of their numbers, and the key of all. ``what`` is theirs, for people.

    Raises KeyMissing; InvalidInput for what was altered.
    """
    head, rest = raw[:_HEAD_BYTES], raw[_HEAD_BYTES:]
    key_id = head[len(_MAGIC) :].decode("ascii", "replace")
    if (
        not head.startswith(_MAGIC)
        or re.match(KEY_ID_PATTERN, key_id) is None
        or len(rest) < IV_BYTES + TAG_BYTES
    ):
        raise altered(f"its {TABLE_NAME} are no table of seals")
    key = keys.get(key_id, what)
    seal = Seal(rest[:IV_BYTES], rest[IV_BYTES : IV_BYTES + TAG_BYTES])
    try:
        plain = Sealer(key, PURPOSE).open_small(rest[IV_BYTES + TAG_BYTES :], seal, head)
        return list(_files(plain)), key
    except WrongSeal as wrong:
        raise altered(f"its {TABLE_NAME}: {wrong}") from wrong
    except (struct.error, ValueError) as error:
        raise altered(f"its {TABLE_NAME} cannot be understood: {str(error)[:100]}") from error


def altered(problem: str) -> InvalidInput:
    """The error for sealed files that are not what was sealed."""
    return InvalidInput(
        f"The sealed content is corrupt: {problem}.",
        remedy="It is captured or fetched anew.",
        problem=problem,
    )


def _files(plain: bytes) -> list[SealedFile]:
    (count,) = struct.unpack_from("<I", plain)
    at = 4
    files: list[SealedFile] = []
    for _ in range(count):
        name_bytes, size_bytes, chunk_count = _FILE.unpack_from(plain, at)
        at += _FILE.size
        name = plain[at : at + name_bytes].decode("utf-8")
        at += name_bytes
        end = at + chunk_count * _CHUNK.size
        chunks = tuple(_chunk(*fields) for fields in _CHUNK.iter_unpack(plain[at:end]))
        at = end
        if sum(chunk.size_bytes for chunk in chunks) != size_bytes or len(chunks) != chunk_count:
            raise ValueError(f"file {len(files)} has not the length of its chunks")
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"file {len(files)} has no name for a file")
        files.append(SealedFile(name, size_bytes, chunks))
    if at != len(plain):
        raise ValueError("there is more than was announced")
    return files


def _chunk(size_bytes: int, iv: bytes, tag: bytes) -> SealedChunk:
    if not 0 < size_bytes <= CHUNK_BYTES:
        raise ValueError(f"a chunk of {size_bytes} bytes")
    return SealedChunk(size_bytes, None if (iv, tag) == _HOLE else Seal(iv, tag))
