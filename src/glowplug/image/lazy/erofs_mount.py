"""Mount an image's EROFS index with the files that hold its content: by the kernel, nothing of ours between.

Two ways, tried by what the kernel can: straight on the files (Linux 6.12, and not from tmpfs or overlayfs),
or on loop devices over them (5.16). Both keep the index file open as long as the filesystem lives, in
whatever mount namespace: :func:`~glowplug.image.lazy.in_use.is_open_elsewhere` of it tells.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from glowplug.image.lazy.loop import loop_device
from glowplug.image.lazy.syscalls import MountRefused, Option, mount

_BACKING_DEVICES = Path("/sys/class/bdi")
READ_AHEAD_KB = 1024  # one chunk: what a request to the blob's filesystem carries at most

_log = logging.getLogger(__name__)


def mount_erofs(index: Path, devices: Sequence[Path], target: Path, *, directio: bool) -> bool:
    """Mount on files. ``directio``: content goes past the page cache of the devices' own filesystem.

    Returns whether it does: a kernel that does not know the option gets on without. Raises MountRefused.
    """
    before = _backing_devices()
    is_direct = _mount_on_files(index, devices, target, directio=directio)
    _raise_read_ahead(_backing_devices() - before)
    return is_direct


def mount_erofs_on_loops(index: Path, devices: Sequence[Path], target: Path) -> None:
    """Mount on loop devices, which last as long as the mount does. Raises MountRefused."""
    with ExitStack() as loops:
        source, *rest = [loops.enter_context(loop_device(file)) for file in (index, *devices)]
        mount("erofs", _options(source, rest), target)
        _set_read_ahead(Path("/sys/block", source.name, "queue"))  # EROFS goes by its first device


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


def _raise_read_ahead(names: set[str]) -> None:
    """The kernel does not say which of them is ours; one mounted just now beside us is no worse off."""
    for name in names:
        _set_read_ahead(_BACKING_DEVICES / name)


def _set_read_ahead(folder: Path) -> None:
    with suppress(OSError):  # in a container /sys is read-only: it stays at the kernel's 128 KiB
        (folder / "read_ahead_kb").write_text(str(READ_AHEAD_KB))
