"""What disks and SQLite say against the SSD tier, in words: full, read-only, busy, or broken.

Callers of the tier can do something about three things only: make room (ResourceExhausted), wait
(DeadlineExceeded), or ask the next tier (Unavailable). A read-only disk counts as full: nothing can be kept,
everything can still be read.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from glowplug.types.errors import DeadlineExceeded, GlowplugError, ResourceExhausted, Unavailable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PRIMARY_CODE = 0xFF  # SQLite's extended codes carry their family in the low byte
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# SQLite tells ENOSPC as "full", but EDQUOT, and either of them on its shared memory file, as an I/O error.
_FULL_IN_DISGUISE = frozenset({sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})


class IndexDamaged(Exception):
    """The index is not one of ours, or not any more. Never leaves the SSD tier: the index is started anew."""


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file is broken, rather than that something is in its way."""
    return isinstance(error, IndexDamaged) or _code(error) & _PRIMARY_CODE in _DAMAGE


def from_sqlite(error: sqlite3.Error, root: Path) -> GlowplugError:
    """Our word for what SQLite says."""
    code = _code(error)
    family = code & _PRIMARY_CODE
    if family == sqlite3.SQLITE_FULL or code in _FULL_IN_DISGUISE:
        return full(root)
    if family == sqlite3.SQLITE_READONLY:
        return read_only(root)
    if family in _BUSY:
        return DeadlineExceeded(
            f"The chunk index in {root} was locked by another process for too long.",
            remedy="Look for a disk that hangs (`dmesg`), and try again.",
            stage="ssd_index",
            root=str(root),
        )
    return unavailable(root, error)


def from_os(error: OSError, root: Path) -> GlowplugError:
    """Our word for what the kernel says."""
    if error.errno in FULL:
        return full(root)
    if error.errno == errno.EROFS:
        return read_only(root)
    return unavailable(root, error)


def full(root: Path) -> ResourceExhausted:
    """The filesystem has no room left, and nothing that may be removed would make enough."""
    return ResourceExhausted(
        f"The disk of {root} is full: the chunk was not kept.",
        remedy="Unmount images nobody needs and run `glowplug image gc`, or free space elsewhere; "
        "what is read meanwhile comes from the next tier.",
        root=str(root),
    )


def over_budget(root: Path, budget_bytes: int) -> ResourceExhausted:
    """Everything that the budget allows is pinned."""
    return ResourceExhausted(
        f"The {budget_bytes / 1e9:.3g} GB for chunks in {root} are taken by images in use.",
        remedy="Raise GLOWPLUG_SSD_BYTES or unmount images; what is read meanwhile comes from the next tier.",
        root=str(root),
        budget_bytes=budget_bytes,
    )


def read_only(root: Path) -> ResourceExhausted:
    """Nothing can be written at all."""
    return ResourceExhausted(
        f"The disk of {root} is read-only: nothing can be kept or removed there.",
        remedy="If the kernel log (`dmesg`) tells of disk errors, replace the disk; otherwise remount it.",
        root=str(root),
    )


def unavailable(root: Path, error: Exception) -> Unavailable:
    """Something else is wrong with the disk."""
    return Unavailable(
        f"The chunks in {root} cannot be reached: {error}.",
        remedy="Look at the kernel log (`dmesg`); other tiers answer meanwhile.",
        root=str(root),
    )


def _code(error: Exception) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return code if isinstance(code, int) else 0
