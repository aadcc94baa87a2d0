"""What one runc container can write to: a layer over its root, /tmp and /dev/shm, all in one tmpfs.

runsc keeps such files in the sandbox's memory, so that they count as the application's and are part of a
snapshot. Here the same is made of the kernel's parts: a tmpfs, an overlay whose upper layer lies in it, and a
tar archive of the lot beside the memory image. (CRIU would also save a tmpfs by itself, but gzipped: slow at
shared memory of gigabytes, and unreadable for the search for secrets.)
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.kernel import mounts
from glowplug.types.errors import DeadlineExceeded, RuntimeFailed, SystemUnfit

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
            with _as_unfit("tmpfs", self._memory):
                flags = mounts.NOSUID | mounts.NODEV
                mounts.mount("tmpfs", self._memory, f"mode=0700,size={limit_bytes}", flags)
            for folder in (self._upper, self._memory / "work"):
                folder.mkdir()
            self._upper.chmod(base.stat().st_mode & 0o7777)
            for folder in self.binds.values():
                folder.mkdir()
                folder.chmod(0o1777)
            with _as_unfit("overlay", self.root):
                mounts.mount_overlay(base, self._upper, self._memory / "work", self.root, mounts.NODEV)
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


@contextmanager
def _as_unfit(kind: str, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SystemUnfit(
            f"{kind} cannot be mounted at {target}: {error.strerror}.",
            remedy="Run as root, with overlayfs and tmpfs in the kernel; `glowplug doctor` checks both.",
            errno=error.errno,
            path=str(target),
        ) from error


def unmount_below(folder: Path) -> None:
    """Detach every mount below ``folder``: whoever still uses one keeps it until it ends.

    May be called at any time, and twice. Raises RuntimeFailed if something stays mounted.
    """
    for target in reversed(_mounts_below(folder)):
        try:
            mounts.unmount(target, mounts.DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # it is gone
                raise RuntimeFailed(
                    f"{target} cannot be unmounted: {error.strerror}.",
                    remedy="Run as root.",
                    path=str(target),
                ) from error


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
