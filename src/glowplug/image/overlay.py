"""Put an overlay over a user's folder, so that nobody who uses it as a root filesystem can change it.

Needed because container runtimes create missing mount points in the root folder *on the host*: runsc does,
even with its own overlay in memory (seen with release 20240729). The overlay's upper layer takes those.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glowplug.types.errors import Conflict, SystemUnfit

# Neither follow nor write the redirections that a folder made by somebody else may hold.
_OPTIONS = "index=off,metacopy=off,redirect_dir=nofollow"


def mount(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount an overlay of ``lower`` at ``target``. All must exist, ``upper`` beside ``work``."""
    with ExitStack() as stack:
        # By descriptor, so that no character of a path can be read as a mount option.
        lower_fd, upper_fd, work_fd = (
            stack.enter_context(_opened_folder(folder)) for folder in (lower, upper, work)
        )
        data = (
            f"lowerdir=/proc/self/fd/{lower_fd},upperdir=/proc/self/fd/{upper_fd},"
            f"workdir=/proc/self/fd/{work_fd},{_OPTIONS}"
        )
        code = _libc_mount(b"glowplug", bytes(target), b"overlay", data.encode())
    if code:
        raise SystemUnfit(
            f"An overlay over {lower} cannot be mounted at {target}: {os.strerror(code)}.",
            remedy="Run as root, with the state directory (GLOWPLUG_STATE) on ext4, xfs, btrfs or tmpfs.",
            errno=code,
            path=str(lower),
        )


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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(bytes(target), 0) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EINVAL:  # somebody else unmounted it in between
        return
    raise Conflict(
        f"{target} cannot be unmounted: {os.strerror(code)}.",
        remedy="End what still uses it (`fuser -vm` tells) and try again.",
        path=str(target),
        errno=code,
    )


def _libc_mount(source: bytes, target: bytes, kind: bytes, data: bytes) -> int:
    """mount(2), nosuid and nodev left to the runtime: 0 or an error number."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, target, kind, ctypes.c_ulong(0), data) == 0:
        return 0
    return ctypes.get_errno()


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
