"""What one runc container can write to: a layer over its root, /tmp and /dev/shm, all in one tmpfs.

runsc keeps such files in the sandbox's memory, so that they count as the application's and are part of a
snapshot. Here the same is made of the kernel's parts: a tmpfs, an overlay whose upper layer lies in it, and a
tar archive of the lot beside the memory image. (CRIU would also save a tmpfs by itself, but gzipped: slow at
shared memory of gigabytes, and unreadable for the search for secrets.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from glowplug.types.errors import DeadlineExceeded, RuntimeFailed, SystemUnfit

_MNT_DETACH = 2
_MS_NOSUID, _MS_NODEV = 2, 4
# Neither follow nor write the redirections that a folder made by somebody else may hold.
_OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=nofollow"
# Holes stay holes; whiteouts are devices and opaque folders attributes, both of which only root can write.
_TAR_OPTIONS = ("--sparse", "--numeric-owner", "--xattrs", "--xattrs-include=*")
_TAR_TIMEOUT_S = 600.0


class WritableFolders:
    """The mounts of one container, below ``folder``, until :func:`unmount_below` it is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self._memory = folder / "memory"
        self._upper = self._memory / "upper"
        self.binds = {"/tmp": self._memory / "tmp", "/dev/shm": self._memory / "shm"}

    def mount(self, base: Path, limit_bytes: int) -> None:
        """Show the tree ``base`` at :attr:`root`, writable. Raises SystemUnfit, with nothing left mounted."""
        for folder in (self.root, self._memory):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            _mount("tmpfs", self._memory, f"mode=0700,size={limit_bytes}")
            for folder in (self._upper, self._memory / "work"):
                folder.mkdir()
            self._upper.chmod(base.stat().st_mode & 0o7777)
            for folder in self.binds.values():
                folder.mkdir()
                folder.chmod(0o1777)
            self._mount_root(base)
        except BaseException:
            unmount_below(self.folder)
            raise

    def save(self, archive: Path) -> None:
        """Write what is in them to ``archive``. Nothing may run in the container. Raises RuntimeFailed."""
        names = [folder.name for folder in (self._upper, *self.binds.values())]
        _tar("--create", "--file", str(archive), *_TAR_OPTIONS, "--directory", str(self._memory), *names)

    def load(self, archive: Path) -> None:
        """Fill freshly mounted ones from ``archive``. Raises RuntimeFailed."""
        # Behind the overlay's back, which is allowed as long as nobody has looked through it.
        _tar(
            "--extract",
            "--file",
            str(archive),
            *_TAR_OPTIONS,
            "--same-permissions",
            "--directory",
            str(self._memory),
        )

    def _mount_root(self, base: Path) -> None:
        with ExitStack() as stack:
            # By descriptor, so that no character of a path can be read as a mount option.
            lower, upper, work = (
                stack.enter_context(_opened(folder)) for folder in (base, self._upper, self._memory / "work")
            )
            layers = (
                f"lowerdir=/proc/self/fd/{lower},upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work}"
            )
            _mount("overlay", self.root, f"{layers},{_OVERLAY_OPTIONS}")


def _mount(kind: str, target: Path, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV if kind == "tmpfs" else _MS_NODEV)
    if libc.mount(b"glowplug", bytes(target), kind.encode(), flags, data.encode()) != 0:
        code = ctypes.get_errno()
        raise SystemUnfit(
            f"A {kind} cannot be mounted at {target}: {os.strerror(code)}.",
            remedy="Run as root, with overlayfs and tmpfs in the kernel; `glowplug doctor` checks both.",
            errno=code,
            path=str(target),
        )


def unmount_below(folder: Path) -> None:
    """Detach every mount below ``folder``: whoever still uses one keeps it until it ends.

    May be called at any time, and twice. Raises RuntimeFailed if something stays mounted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for target in reversed(_mounts_below(folder)):
        if libc.umount2(bytes(target), _MNT_DETACH) != 0 and ctypes.get_errno() not in (
            errno.EINVAL,
            errno.ENOENT,
        ):
            raise RuntimeFailed(
                f"{target} cannot be unmounted: {os.strerror(ctypes.get_errno())}.",
                remedy="Run as root.",
                path=str(target),
            )


def _mounts_below(folder: Path) -> list[Path]:
    """In the order they were mounted (proc(5), mountinfo: the fifth field, odd characters in octal)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        name = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split()[4])
        target = Path(os.fsdecode(name))
        if target != folder and target.is_relative_to(folder):
            found.append(target)
    return found


def _tar(*arguments: str) -> None:
    try:
        done = subprocess.run(
            ["tar", *arguments], capture_output=True, text=True, timeout=_TAR_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SystemUnfit("The `tar` command is missing.", remedy="apt-get install tar") from None
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(
            f"`tar` did not finish within {_TAR_TIMEOUT_S:g} s.", remedy="The disk may hang (`dmesg`)."
        ) from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeFailed(
            f"`tar` failed with what the container wrote: {words[0]}",
            remedy="Look for a full disk; a damaged snapshot is captured anew.",
            said=words[-10:],
        )


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
