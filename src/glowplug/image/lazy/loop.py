"""Read-only loop devices: how a file becomes a block device for kernels whose EROFS wants one.

A device made here goes away by itself: with the last descriptor, or with the mount that uses it. So a
process that is killed at any point leaves none behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from glowplug.image.lazy.syscalls import MountRefused

# include/uapi/linux/loop.h
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_READ_ONLY = 1
_AUTO_CLEAR = 4
_DIRECT_IO = 16  # no second copy in the page cache where the file's filesystem can
_CONFIG = struct.Struct("<II 40x 12x I 64s 64x 32x 16x 64x")  # fd, block size, flags, name
_BLOCK_BYTES = 4096
_ATTEMPTS = 64  # each one lost to somebody who took the same free device


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """The loop device of ``file`` (a multiple of 512 bytes long); kept after the block only by a mount."""
    try:
        device, path = _attach_file(file)
    except OSError as problem:
        raise MountRefused(
            f"No loop device for {file}: {problem.strerror}.",
            remedy="Run as root; in a container, with /dev/loop-control and the devices /dev/loop*.",
            errno=problem.errno,
            path=str(file),
        ) from problem
    try:
        yield path
    finally:
        os.close(device)


def backing_file(device: Path) -> Path | None:
    """The file behind a loop device; None for anything else."""
    with suppress(OSError):
        name = Path("/sys/block", device.name, "loop/backing_file").read_bytes()
        return Path(os.fsdecode(name.removesuffix(b"\n")))
    return None


def _attach_file(file: Path) -> tuple[int, Path]:
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _attach(backing, file)
    finally:
        os.close(backing)


def _attach(backing: int, file: Path) -> tuple[int, Path]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
            with ExitStack() as on_failure:
                device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                on_failure.callback(os.close, device)
                if _configure(device, backing, file):
                    on_failure.pop_all()
                    return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "others take every free one first")


def _configure(device: int, backing: int, file: Path) -> bool:
    """False if somebody else has just taken the device."""
    for wish in (_DIRECT_IO, 0):
        flags = _READ_ONLY | _AUTO_CLEAR | wish
        try:
            fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, _BLOCK_BYTES, flags, bytes(file)[:63]))
        except OSError as refused:
            if refused.errno == errno.EBUSY:
                return False
            if refused.errno != errno.EINVAL or not wish:
                raise
        else:
            return True
    return False
