"""Put an overlay over a user's folder, so that nobody who uses it as a root filesystem can change it.

Needed because container runtimes create missing mount points in the root folder *on the host*: runsc does,
even with its own overlay in memory (seen with release 20240729). The overlay's upper layer takes those.
"""

from __future__ import annotations

import errno
from pathlib import Path

from glowplug.kernel import mounts
from glowplug.types.errors import Conflict, SystemUnfit


def mount(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount an overlay of ``lower`` at ``target``. All must exist, ``upper`` beside ``work``."""
    try:
        mounts.mount_overlay(lower, upper, work, target)
    except OSError as error:
        raise SystemUnfit(
            f"An overlay over {lower} cannot be mounted at {target}: {error.strerror}.",
            remedy="Run as root, with the state directory (GLOWPLUG_STATE) on ext4, xfs, btrfs or tmpfs.",
            errno=error.errno,
            path=str(lower),
        ) from error


def is_possible(scratch: Path) -> bool:
    """Whether overlays with an upper layer below the folder ``scratch`` (which must be empty) work here."""
    folders = [scratch / name for name in ("lower", "upper", "work", "target")]
    for folder in folders:
        folder.mkdir()
    try:
        mount(*folders)
    except SystemUnfit:
        return False
    release(folders[-1])
    return True


def release(target: Path) -> None:
    """Unmount ``target`` if it is mounted. Containers that use it keep it in their own mount namespace."""
    if not target.is_mount():
        return
    try:
        mounts.unmount(target)
    except OSError as error:
        if error.errno == errno.EINVAL:  # somebody else unmounted it in between
            return
        raise Conflict(
            f"{target} cannot be unmounted: {error.strerror}.",
            remedy="End what still uses it (`fuser -vm` tells) and try again.",
            path=str(target),
            errno=error.errno,
        ) from error
