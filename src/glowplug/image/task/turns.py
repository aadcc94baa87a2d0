"""Imports and garbage collection take turns: content that was stored a moment ago belongs to no image yet."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from glowplug.types.errors import Conflict
from glowplug.types.paths import StateDir

_LOCK_NAME = ".import.lock"


@contextmanager
def adding(state: StateDir) -> Iterator[None]:
    """Hold while content is added, several at a time. Raises Conflict while garbage is collected."""
    with _locked(state, fcntl.LOCK_SH, "Garbage is being collected on this node"):
        yield


@contextmanager
def collecting(state: StateDir) -> Iterator[None]:
    """Hold while content is removed. Raises Conflict while an import or a pull runs."""
    with _locked(state, fcntl.LOCK_EX, "An image is being imported on this node"):
        yield


@contextmanager
def _locked(state: StateDir, kind: int, refusal: str) -> Iterator[None]:
    state.indexes.mkdir(parents=True, exist_ok=True)
    path = state.indexes / _LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise Conflict(f"{refusal}.", remedy="Try again when it has finished.") from busy
        yield
    finally:
        os.close(descriptor)
