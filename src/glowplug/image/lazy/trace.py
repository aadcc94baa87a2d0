"""What a command read of an image the first time, in the order it read it: the next start prefetches that.

One trace per (image, command) lies beside the image's index as ``traces/<key>.json`` and travels with it, so
it is also input from elsewhere. A trace is advice: one that is damaged, too long or of another image is
logged and ignored, never an error of the start that asked for it. Chunks are named by their index in the
image's table, which the image's digest fixes. Format::

    {"version": 1, "program": "python3", "chunks": 1234, "order": "<base64 of zstd of 1234 x u32 LE>"}

A command's arguments may hold secrets and traces leave the machine: of a command only its hash (the key) and
the name of its program are kept.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import os
import re
import stat
import sys
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath

import blake3
import zstandard

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import InvalidInput

_log = logging.getLogger(__name__)

VERSION = 1
MAX_MERGED = 32  # traces that a merge looks at, newest first: bounds the work of a folder full of them
MAX_PROGRAM_CHARACTERS = 100
_KEY = re.compile(r"[0-9a-f]{32}")
_INDEX_BYTES = 4
_OTHER_FIELDS_BYTES = 4096
_WINDOW_BYTES = 1 << 23  # zstd's own at the level used; what a hostile frame may make us allocate


@dataclass(frozen=True)
class Trace:
    """Chunk indices of one image in the order of their first use, each once; and who used them."""

    program: str
    order: array[int]


def key_of(command: Sequence[str]) -> str:
    """The name of a command's trace: safe as a file name, equal for equal commands only."""
    return blake3.blake3(json.dumps(list(command)).encode()).hexdigest()[:32]


def save(folder: Path, key: str, command: Sequence[str], order: Iterable[int]) -> Path:
    """Keep ``order`` as the trace ``key`` (see :func:`key_of`) of the image index in ``folder``.

    Replaces an older one at once or not at all. Raises InvalidInput for a key that is none.
    """
    path = _path(folder, key)
    path.parent.mkdir(exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".trace.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encode(command, order))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load(folder: Path, key: str, table: ChunkTable) -> Trace | None:
    """The trace ``key`` of the image with this table; None if there is none or it is damaged (logged)."""
    path = _path(folder, key)
    try:
        return parse(_read_regular(path, max_file_bytes(table) + 1), table)
    except FileNotFoundError:
        return None
    except (OSError, InvalidInput) as problem:
        _log.warning("access trace %s is ignored: %s", path, problem)
        return None


def best(folder: Path, command: Sequence[str], table: ChunkTable) -> Trace | None:
    """What to prefetch for ``command``: its own trace, else all traces of the image merged, else None."""
    own = load(folder, key_of(command), table)
    if own is not None:
        return own
    others = [trace for key in _keys(folder) if (trace := load(folder, key, table)) is not None]
    return merge(others) if others else None


def merge(traces: Sequence[Trace]) -> Trace:
    """All chunks of ``traces``, each once, what any of them reads early before what they read late."""
    ranked = chain.from_iterable(zip_longest(*(trace.order for trace in traces)))
    order = array("I", dict.fromkeys(index for index in ranked if index is not None))
    programs = dict.fromkeys(trace.program for trace in traces)
    return Trace("+".join(programs)[:MAX_PROGRAM_CHARACTERS], order)


def order_for_layout(trace: Trace, table: ChunkTable) -> list[Chunk]:
    """The hot set of ``--order-by``: the chunks that a rebuilt blob should begin with, in this order."""
    return [table[index] for index in trace.order]


def max_file_bytes(table: ChunkTable) -> int:
    """No trace of an image with this table is longer: what a reader or a download has to allow for."""
    packed = _compressed_bound(len(table) * _INDEX_BYTES)
    return (packed + 2) // 3 * 4 + _OTHER_FIELDS_BYTES


def _compressed_bound(size_bytes: int) -> int:
    """An upper bound of what zstd makes of ``size_bytes`` (ZSTD_COMPRESSBOUND, rounded up)."""
    return size_bytes + size_bytes // 256 + 1024


def parse(data: bytes, table: ChunkTable) -> Trace:
    """A trace file's content, checked against the image's table. Raises InvalidInput."""
    if len(data) > max_file_bytes(table):
        raise _damaged("it is longer than the image allows")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise _damaged("it is not JSON") from problem
    if not isinstance(fields, dict) or fields.get("version") != VERSION:
        raise _damaged(f"it is not of version {VERSION}")
    count, program, packed = fields.get("chunks"), fields.get("program"), fields.get("order")
    if type(count) is not int or not isinstance(program, str) or not isinstance(packed, str):
        raise _damaged("a field is missing or of the wrong kind")
    if not 0 <= count <= len(table):
        raise _damaged("it names more chunks than the image has")
    return Trace(_printable(program), _unpack_order(packed, count, len(table)))


def _encode(command: Sequence[str], order: Iterable[int]) -> bytes:
    indices = array("I", dict.fromkeys(order))
    count = len(indices)
    if sys.byteorder == "big":
        indices.byteswap()
    packed = zstandard.ZstdCompressor(level=9, write_checksum=True).compress(indices.tobytes())
    fields = {
        "version": VERSION,
        "program": _printable(PurePosixPath(command[0]).name if command else ""),
        "chunks": count,
        "order": base64.b64encode(packed).decode(),
    }
    return json.dumps(fields).encode()


def _unpack_order(packed: str, count: int, table_chunks: int) -> array[int]:
    wanted_bytes = count * _INDEX_BYTES
    try:
        compressed = base64.b64decode(packed, validate=True)
        # Read as a stream, one byte more than is due: the frame's own word for its length is not believed.
        unpacker = zstandard.ZstdDecompressor(max_window_size=max(_WINDOW_BYTES, wanted_bytes))
        with unpacker.stream_reader(io.BytesIO(compressed)) as reader:
            raw = reader.read(wanted_bytes + 1)
    except (binascii.Error, ValueError, zstandard.ZstdError, MemoryError) as problem:
        raise _damaged("its order cannot be unpacked") from problem
    if len(raw) != wanted_bytes:
        raise _damaged("its order is not as long as it says")
    order = array("I", raw)
    if sys.byteorder == "big":
        order.byteswap()
    if count and max(order) >= table_chunks:
        raise _damaged("it names a chunk that the image does not have")
    if len(set(order)) != count:
        raise _damaged("it names a chunk twice")
    return order


def _path(folder: Path, key: str) -> Path:
    if _KEY.fullmatch(key) is None:
        raise InvalidInput(
            f"{key[:64]!r} is no name of an access trace.",
            remedy="Names are 32 hexadecimal digits, as the files in the image's traces folder have.",
        )
    return folder / "traces" / f"{key}.json"


def _read_regular(path: Path, limit_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _damaged("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit_bytes)
    finally:
        os.close(descriptor)


def _keys(folder: Path) -> list[str]:
    """Names of the newest traces."""
    try:
        paths = [path for path in (folder / "traces").iterdir() if _KEY.fullmatch(path.stem) is not None]
        found = [path for path in paths if path.suffix == ".json"]
        found.sort(key=lambda path: (-path.lstat().st_mtime_ns, path.name))
    except FileNotFoundError:
        return []
    except OSError as problem:
        _log.warning("access traces in %s cannot be listed: %s", folder, problem)
        return []
    return [path.stem for path in found[:MAX_MERGED]]


def _printable(program: str) -> str:
    return "".join(letter for letter in program if letter.isprintable())[:MAX_PROGRAM_CHARACTERS]


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"This is not an access trace of the image: {why}.",
        remedy="Delete the file; the next start of the command records a new one.",
    )
