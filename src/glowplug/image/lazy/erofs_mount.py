"""Mount an image's EROFS index with the files that hold its content: by the kernel, nothing of ours between.

Two ways, tried by what the kernel can: straight on the files (Linux 6.12, and not from tmpfs or overlayfs),
or on loop devices over them (5.16). Both keep the index file open as long as the filesystem lives, in
whatever mount namespace: :func:`~glowplug.image.lazy.in_use.is_open_elsewhere` of it tells.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from glowplug.image.lazy.gather import CONTENT_NAME
from glowplug.image.lazy.loop import loop_device
from glowplug.image.lazy.syscalls import MountRefused, Option, detached_root, mount

_BACKING_DEVICES = Path("/sys/class/bdi")
READ_AHEAD_KB = 1024  # one chunk: what a request to the blob's filesystem carries at most
GATHERED_READ_AHEAD_KB = 4096  # many small files at once; with 1024 `tar` of 64,000 took 0.5 s longer

_log = logging.getLogger(__name__)


def mount_erofs(index: Path, devices: Sequence[Path], target: Path, *, directio: bool) -> bool:
    """Mount on files. ``directio``: content goes past the page cache of the devices' own filesystem.

    Returns whether it does: a kernel that does not know the option gets on without. Raises MountRefused.
    """
    before = _backing_devices()
    is_direct = _mount_on_files(index, devices, target, directio=directio)
    _raise_read_ahead(_backing_devices() - before, READ_AHEAD_KB)
    return is_direct


@contextmanager
def gathered_content(index: Path, packs: Sequence[Path]) -> Iterator[Path]:
    """The one file of a gathered image (:mod:`glowplug.image.lazy.gather`), to be a device of another mount.

    That mount keeps it alive; it is visible nowhere else. Raises MountRefused, OSError.
    """
    before = _backing_devices()
    with detached_root("erofs", [Option("directio"), *_options(index, packs)]) as root:
        # Before it is opened: a file keeps the read-ahead that its filesystem had then.
        _raise_read_ahead(_backing_devices() - before, GATHERED_READ_AHEAD_KB)
        file = os.open(CONTENT_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
        try:
            yield Path(f"/proc/self/fd/{file}")
        finally:
            os.close(file)


def mount_erofs_on_loops(index: Path, devices: Sequence[Path], target: Path) -> None:
    """Mount on loop devices, which last as long as the mount does. Raises MountRefused."""
    with ExitStack() as loops:
        source, *rest = [loops.enter_context(loop_device(file)) for file in (index, *devices)]
        mount("erofs", _options(source, rest), target)
        # EROFS goes by its first device.
        _set_read_ahead(Path("/sys/block", source.name, "queue"), READ_AHEAD_KB)


def _mount_on_files(index: Path, devices: Sequence[Path], target: Path, *, directio: bool) -> bool:
    options = _options(index, devices)
    if not directio:
        mount("erofs", options, target)
        return False
    try:
        mount("erofs", [Option("directio"), *options], target)
    except MountRefused as refused:
        if refused.details["errno"] not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        mount("erofs", options, target)
        _log.warning("%s is mounted without directio, at twice the page cache: %s", target, refused.message)
        return False
    return True


def _options(source: Path, devices: Sequence[Path]) -> list[Option]:
    return [Option("source", str(source)), *(Option("device", str(device)) for device in devices)]


def _backing_devices() -> set[str]:
    with suppress(OSError):  # no sysfs here: the kernel's default read-ahead, then
        return {entry.name for entry in _BACKING_DEVICES.iterdir() if entry.name.startswith("erofs-")}
    return set()


def _raise_read_ahead(names: set[str], read_ahead_kb: int) -> None:
    """The kernel does not say which of them is ours; one mounted just now beside us is no worse off."""
    for name in names:
        _set_read_ahead(_BACKING_DEVICES / name, read_ahead_kb)


def _set_read_ahead(folder: Path, read_ahead_kb: int) -> None:
    with suppress(OSError):  # in a container /sys is read-only: it stays at the kernel's 128 KiB
        (folder / "read_ahead_kb").write_text(str(read_ahead_kb))
