"""Fuzz what is small and of many kinds: traces, leases, records, tokens, passwords, orders to the daemon.

Run as :mod:`fuzz.engine` says, and inputs are as there. Whatever comes in, it is refused by the error that
the reader promises, or ignored, or what was read of it is possible; anything else is a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from fuzz.engine import Parser, instrumented, is_taken, require, run, sound

with instrumented(__name__, "glowplug.chunks", "glowplug.image"):
    from pydantic import ValidationError

    from glowplug.chunks.chunk import Chunk
    from glowplug.chunks.objects import ObjectInfo
    from glowplug.chunks.region_condemned import Condemned
    from glowplug.chunks.region_leases import Leases
    from glowplug.chunks.table import ChunkTable
    from glowplug.image.index.manifest import FileDigest
    from glowplug.image.lazy import trace
    from glowplug.image.lazy.control import parse_line
    from glowplug.image.lazy.graduate import GraduatedRecord
    from glowplug.image.lazy.orders import pack_order, unpack_order
    from glowplug.image.origin.docker_credentials import find_credentials
    from glowplug.image.origin.registry_auth import token_in
    from glowplug.types.clock import ManualClock
    from glowplug.types.errors import Conflict, InvalidInput, SystemUnfit, Unauthorized

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
TABLE = ChunkTable(ChunkTable.pack(Chunk(n.to_bytes(32, "little"), 1 + n) for n in range(100)))


class OneObject:
    """A region that holds one object of these bytes, whatever it is called, and forgets what is written."""

    tier = "region"

    def __init__(self, key: str, data: bytes) -> None:
        self._key = key
        self._data = data

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        """As :class:`glowplug.chunks.objects.Objects`."""
        if len(self._data) > limit_bytes:
            raise InvalidInput("too long", remedy="")
        return self._data

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As :class:`glowplug.chunks.objects.WriteObjects`."""
        return iter([ObjectInfo(self._key, len(self._data))])

    def write(self, key: str, data: object, timeout_s: float) -> None:
        """Forget it."""

    def delete(self, keys: Collection[str]) -> None:
        """Forget that."""


def fuzz(data: bytes) -> bool:
    """One input."""
    return is_taken(data, _PARSERS, (InvalidInput, ValidationError, _Ignored, SystemUnfit, Unauthorized))


class _Ignored(Exception):
    """The reader went on as if there were nothing."""


def _trace(data: bytes) -> None:
    order = trace.parse(data, TABLE).order
    require(len(set(order)) == len(order))
    require(all(index < len(TABLE) for index in order))


def _lease(data: bytes) -> None:
    """A living lease of a pusher stops a collector; anything else does not."""
    leases = Leases(OneObject("leases/push-x.json", data), ManualClock(NOW_S), lambda _seconds: None)  # type: ignore[arg-type]
    try:
        with leases.collecting():
            raise _Ignored
    except Conflict:
        return


def _condemned(data: bytes) -> None:
    """What is due goes, and what is left is remembered."""
    condemned = Condemned(
        OneObject("gc/condemned.json", data),  # type: ignore[arg-type]
        ManualClock(NOW_S),
        "gc/condemned.json",
        "packs",
    )
    due = condemned.condemn(["known"], DAY_S)
    require(condemned.save_without(due) == 1 - len(due))
    if not due:
        raise _Ignored


def _record(data: bytes) -> None:
    record = GraduatedRecord.model_validate_json(data)
    require(GraduatedRecord.model_validate_json(record.model_dump_json()) == record)
    require(record.is_mountable(can_gather=True))


def _token(data: bytes) -> None:
    token = token_in(data, "registry.example")
    require(token.isascii() and token.isprintable() and " " not in token)


_FOLDER = tempfile.TemporaryDirectory(prefix="glowplug-fuzz-")


def _passwords(data: bytes) -> None:
    Path(_FOLDER.name, "config.json").write_bytes(data)
    if find_credentials("registry.example", {"DOCKER_CONFIG": _FOLDER.name}) is None:
        raise _Ignored


def _line(data: bytes) -> None:
    require(parse_line(data)["v"] == 1)


def _order(data: bytes) -> None:
    numbers = unpack_order(data.decode("utf-8", "replace"))
    require(unpack_order(pack_order(numbers)) == numbers)


def _sound_trace() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return trace.save(Path(folder), "0" * 32, ["/usr/bin/python3"], [5, 3, 99, 0]).read_bytes()


_DIGEST = FileDigest.of(b"content")
_RECORD = GraduatedRecord(index=_DIGEST, gathered=_DIGEST, packs=[1, 2, 300])
_LEASE = {"version": 1, "renewed_s": NOW_S - 60, "holder": "machine:1"}
_CONDEMNED = {"version": 1, "packs": {"known": NOW_S - 2 * DAY_S}}
_LOGIN = {"auths": {"https://registry.example/v1/": {"auth": "a2VlcGVyOm9wZW4="}}, "credHelpers": {}}
_PARSERS = {
    b"t": Parser(_trace, _sound_trace()),
    b"l": Parser(_lease, json.dumps(_LEASE).encode()),
    b"c": Parser(_condemned, json.dumps(_CONDEMNED).encode()),
    b"g": Parser(_record, _RECORD.model_dump_json().encode()),
    b"k": Parser(_token, b'{"token": "abc.def", "expires_in": 300}'),
    b"p": Parser(_passwords, json.dumps(_LOGIN).encode()),
    b"o": Parser(_line, b'{"v": 1, "op": "ping", "digest": "00"}'),
    b"n": Parser(_order, pack_order([5, 3, 99]).encode()),
}
SOUND = sound(_PARSERS)


if __name__ == "__main__":
    run(fuzz)
