"""Named, immutable byte strings somewhere else: what a region's bucket and a zone's cache servers look like.

Keys are ``/``-separated ASCII (``packs/ab/abcd..``), never start with a slash, never contain ``..``.
Nothing read here is trusted: callers verify hashes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from typing_extensions import Buffer

from glowplug.chunks.pace import Meter


@dataclass(frozen=True)
class ObjectInfo:
    """One entry of a listing."""

    key: str
    size_bytes: int


class Objects(Protocol):
    """Reads. Safe to use from many threads; each call ends within its timeout, however the server behaves."""

    @property
    def tier(self) -> str:
        """``zone`` or ``region``."""
        ...

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes | memoryview:
        """Exactly this range. Raises NotFound, Unavailable, DeadlineExceeded or InvalidInput (bad answer).

        A view's memory is used again once neither it nor a slice of it is held.
        """
        ...

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        """The whole object. Raises as ``read``; InvalidInput if it is longer than ``limit_bytes``."""
        ...


@runtime_checkable
class MeteredObjects(Protocol):
    """Objects that tell what has come so far, of answers under way as well."""

    @property
    def meters(self) -> Sequence[Meter]:
        """One for each server."""
        ...


class WriteObjects(Objects, Protocol):
    """Also writes, lists and deletes: a region."""

    def write(self, key: str, data: Buffer | Path, timeout_s: float) -> None:
        """Store it whole or not at all; a big one in parallel parts. Raises Unavailable, DeadlineExceeded."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Everything whose key starts with ``prefix`` (which ends in ``/``), in key order."""
        ...

    def delete(self, keys: Collection[str]) -> None:
        """Remove these; what is not there is no error."""
        ...
