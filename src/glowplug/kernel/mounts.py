"""mount(2) and umount2(2). Errors are OSError with the kernel's number; what it means is the caller's to say.

Called directly: the `mount` command would read a comma or a colon in a path as the end of an option.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NOSUID, NODEV = 2, 4
_BIND, _RECURSIVE, _SHARED = 0x1000, 0x4000, 1 << 20
DETACH = 2
# Neither follow nor write the redirections that a folder made by somebody else may hold.
_OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=nofollow"


def mount(kind: str, target: Path, options: str, flags: int = 0) -> None:
    """Mount a filesystem that has no device. Raises OSError."""
    _mount(b"glowplug", target, kind.encode(), flags, options.encode())


def bind(source: Path, target: Path) -> None:
    """Show what is at ``source``, links followed, at ``target`` too. Raises OSError."""
    _mount(bytes(source), target, None, _BIND, None)


def make_shared(target: Path) -> None:
    """Whoever copies the mount at ``target`` sees what is mounted below it later. Raises OSError."""
    _mount(b"none", target, None, _SHARED | _RECURSIVE, None)


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path, flags: int = 0) -> None:
    """Mount an overlay of ``lower`` at ``target``. All exist, ``upper`` beside ``work``. Raises OSError."""
    with ExitStack() as stack:
        # By descriptor, so that no character of a path can be read as a mount option.
        layers = {
            f"{name}dir": f"/proc/self/fd/{stack.enter_context(_opened(folder))}"
            for name, folder in (("lower", lower), ("upper", upper), ("work", work))
        }
        described = ",".join(f"{name}={path}" for name, path in layers.items())
        mount("overlay", target, f"{described},{_OVERLAY_OPTIONS}", flags)


def unmount(target: Path, flags: int = 0) -> None:
    """Unmount; with ``DETACH``, whoever uses it keeps it until it ends. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(bytes(target), flags) != 0:
        raise _last_error(target)


def _mount(source: bytes, target: Path, kind: bytes | None, flags: int, options: bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, bytes(target), kind, ctypes.c_ulong(flags), options) != 0:
        raise _last_error(target)


def _last_error(target: Path) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), str(target))


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
