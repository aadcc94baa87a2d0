"""What the doctor may ask of a machine, so that a test can describe a machine that is ill."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from glowplug.image.lazy.probe import MountSupport, probe_mounting
from glowplug.runtime.cdi import cdi_folders, read_gpu_edits
from glowplug.snapshot.gpu.inventory import Inventory, read_inventory
from glowplug.types.errors import GlowplugError


@dataclass(frozen=True)
class Completed:
    """How a short command ended. ``code`` is None when it did not end in time or could not start."""

    code: int | None
    output: str

    @property
    def is_good(self) -> bool:
        """It ran and said 0."""
        return self.code == 0

    @property
    def last_line(self) -> str:
        """The last thing it said that is not blank."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


class Machine(Protocol):
    """Questions about one machine. Duties: never raise, never wait longer than asked, change nothing."""

    def run(self, command: list[str], timeout_s: float) -> Completed:
        """Run a command and collect what it says (stdout and stderr together)."""
        ...

    def which(self, name: str) -> Path | None:
        """The program called ``name``, if there is one."""
        ...

    def variable(self, name: str) -> str | None:
        """An environment variable."""
        ...

    def read(self, path: Path) -> str | None:
        """The text of a file, None when it cannot be read."""
        ...

    def is_writable(self, path: Path) -> bool:
        """Whether we may create things in ``path``, or in its closest parent that exists."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Free space on the filesystem that holds ``path`` or its closest parent that exists."""
        ...

    def user_id(self) -> int:
        """The effective user id."""
        ...

    def kernel(self) -> tuple[str, str, str]:
        """System name, release and machine, as ``uname`` gives them."""
        ...

    def open_files_limit(self) -> int:
        """The hard limit on open files."""
        ...

    def image_mounts(self, state_root: Path) -> MountSupport:
        """Which ways of mounting images work for this state directory: tried, and undone."""
        ...

    def gpus(self) -> Inventory | str:
        """The GPUs and their driver; else in words why they cannot be listed, "" where there is no driver."""
        ...

    def why_gpus_are_hidden(self) -> str:
        """In words why containers are given no GPU on a machine that has some; "" if they are."""
        ...


class LocalMachine:
    """The machine we run on."""

    def run(self, command: list[str], timeout_s: float) -> Completed:
        """See :class:`Machine`."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Completed(None, f"{command[0]} did not end within {timeout_s:.0f} s")
        except OSError as error:
            return Completed(None, f"{command[0]}: {error.strerror}")
        return Completed(done.returncode, done.stdout.decode(errors="replace"))

    def which(self, name: str) -> Path | None:
        """See :class:`Machine`."""
        # root's PATH lacks the sbin folders in some shells; system tools live there all the same.
        found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        return Path(found) if found else None

    def variable(self, name: str) -> str | None:
        """See :class:`Machine`."""
        return os.environ.get(name)

    def read(self, path: Path) -> str | None:
        """See :class:`Machine`."""
        try:
            return path.read_text(errors="replace")
        except OSError:
            return None

    def is_writable(self, path: Path) -> bool:
        """See :class:`Machine`."""
        return os.access(_existing(path), os.W_OK | os.X_OK)

    def free_bytes(self, path: Path) -> int:
        """See :class:`Machine`."""
        return shutil.disk_usage(_existing(path)).free

    def user_id(self) -> int:
        """See :class:`Machine`."""
        return os.geteuid()

    def kernel(self) -> tuple[str, str, str]:
        """See :class:`Machine`."""
        name = os.uname()
        return name.sysname, name.release, name.machine

    def open_files_limit(self) -> int:
        """See :class:`Machine`."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return 2**31 - 1 if hard == resource.RLIM_INFINITY else hard

    def image_mounts(self, state_root: Path) -> MountSupport:
        """See :class:`Machine`."""
        with tempfile.TemporaryDirectory(prefix=".glowplug-doctor-", dir=_existing(state_root)) as scratch:
            return probe_mounting(Path(scratch))

    def gpus(self) -> Inventory | str:
        """See :class:`Machine`."""
        try:
            return read_inventory() or ""
        except GlowplugError as error:
            return str(error)

    def why_gpus_are_hidden(self) -> str:
        """See :class:`Machine`."""
        try:
            read_gpu_edits(cdi_folders())
        except GlowplugError as error:
            return str(error)
        return ""


def _existing(path: Path) -> Path:
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())
