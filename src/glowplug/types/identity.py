"""What must be equal between the runtime that captured a memory image and the one that restores it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeIdentity:
    """The container runtime as far as a memory image depends on it. ``flags``: those given to every call."""

    name: str
    version: str
    flags: tuple[str, ...] = ()
