"""Which ways of mounting an image work on this machine, found out by doing each with a tiny image.

Kernel versions, configurations, containers and the state directory's filesystem all have their say, so
nothing is concluded from them. The answer is kept for as long as the machine runs.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from glowplug.chunks.chunk import ALIGN_BYTES, Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.image.lazy import fuse_mount, syscalls
from glowplug.image.lazy.erofs_mount import gathered_content, mount_erofs, mount_erofs_on_loops
from glowplug.image.lazy.fuse_mount import mount_fuse
from glowplug.image.lazy.gather import gather
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir
from glowplug.types.spec import Spec

Way = Literal["lazy", "loop", "plain_fuse"]
WAYS: tuple[Way, ...] = ("lazy", "loop", "plain_fuse")

_MEANS: dict[Way, str] = {
    "lazy": "EROFS on files, in the kernel (Linux 6.12)",
    "loop": "EROFS on loop devices, in the kernel (Linux 5.16)",
    "plain_fuse": "FUSE alone, a process for each image (slower)",
}
_GATHERING = "Small files of images on local packs, read ahead together"
_WHY: dict[object, str] = {
    errno.ENODEV: "This kernel was built without it.",
    errno.ENOTBLK: "Either the kernel is too old, or the state directory is on tmpfs or overlayfs.",
    errno.EPERM: "Only root may, and in a container only with CAP_SYS_ADMIN.",
}
_CONTENT = bytes(range(256)) * (ALIGN_BYTES // 256)
_MAX_RECORD_BYTES = 1 << 16


class Trial(Spec):
    """One way, and why it does not work (empty: it does)."""

    way: Way
    refusal: str = ""


class MountSupport(Spec):
    """What :func:`probe_mounting` found, the best way first."""

    version: Literal[2] = 2
    boot_id: str = ""
    user_id: int = 0
    trials: list[Trial]
    gather_refusal: str = "It was not tried."

    @property
    def ways(self) -> tuple[Way, ...]:
        """Those that work, in the order in which they are to be tried."""
        return tuple(trial.way for trial in self.trials if not trial.refusal)

    @property
    def can_gather(self) -> bool:
        """Whether small files of images on local packs can be read ahead together."""
        return "lazy" in self.ways and not self.gather_refusal

    def explain(self) -> list[str]:
        """A line for each way, for people, and one for what goes with the first."""
        first = next(iter(self.ways), None)
        lines = [_explain(trial, is_used=trial.way == first) for trial in self.trials]
        return [*lines, f"{_GATHERING}: {f'no. {self.gather_refusal}' if self.gather_refusal else 'works.'}"]


def probe_mounting(scratch: Path) -> MountSupport:
    """Try every way below ``scratch``, a folder on the filesystem that images are going to lie on."""
    attempts: dict[Way, Callable[[Path], None]] = {
        "lazy": _try_on_files,
        "loop": _try_on_loops,
        "plain_fuse": _try_fuse,
    }
    return MountSupport(
        boot_id=_boot_id(),
        user_id=os.geteuid(),
        trials=[Trial(way=way, refusal=_refusal(attempts[way], scratch)) for way in WAYS],
        gather_refusal=_refusal(_try_gathering, scratch),
    )


def mount_support(state: StateDir) -> MountSupport:
    """As :func:`probe_mounting`, remembered in ``support.json`` until the machine restarts."""
    record = state.lazy / "support.json"
    with suppress(OSError, ValidationError), record.open("rb") as file:
        known = MountSupport.model_validate_json(file.read(_MAX_RECORD_BYTES))
        if known.boot_id == _boot_id() and known.user_id == os.geteuid():
            return known
    state.lazy.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = probe_mounting(state.lazy)
    descriptor, fresh = tempfile.mkstemp(dir=state.lazy, prefix=".support-")
    with os.fdopen(descriptor, "w") as file:
        file.write(found.model_dump_json())
    Path(fresh).replace(record)
    return found


def _explain(trial: Trial, *, is_used: bool) -> str:
    if trial.refusal:
        return f"{_MEANS[trial.way]}: no. {trial.refusal}"
    return f"{_MEANS[trial.way]}: works{', used' if is_used else ''}."


def _refusal(attempt: Callable[[Path], None], scratch: Path) -> str:
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=".probe-"))
    try:
        attempt(folder)
    except GlowplugError as refused:
        why = _WHY.get(refused.details.get("errno"))
        return f"{refused.message} {why}" if why else refused.message
    except OSError as refused:
        return f"{refused.strerror or refused}."
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _try_on_files(folder: Path) -> None:
    """Also a file that is too short, as a read is that SIGKILL ends early.

    Up to Linux 7.0 and the stable versions of March 2026 ("erofs: set fileio bio failed in short read case")
    EROFS takes what is missing then for zeros, and so does everybody who reads the file later.
    """
    index, blob, target = _write_image(folder)
    mount_erofs(index, [blob], target, directio=True)
    _read_back(target)
    blob.write_bytes(b"")
    mount_erofs(index, [blob], target, directio=True)
    try:
        _read_back(target)
    except OSError as problem:
        if problem.errno != errno.EIO:
            raise OSError("A read that is cut short gives zeros on this kernel") from problem
    _try_fuse(folder)


def _try_on_loops(folder: Path) -> None:
    index, blob, target = _write_image(folder)
    mount_erofs_on_loops(index, [blob], target)
    _read_back(target)
    _try_fuse(folder)


def _try_gathering(folder: Path) -> None:
    index, blob, target = _write_image(folder)
    table = ChunkTable((folder / "chunks.bin").read_bytes())
    gathered = folder / "gathered.erofs"
    gathered.write_bytes(gather(table, [(1, 0)] * len(table), {1: table.blob_bytes // ALIGN_BYTES}, 1).image)
    with gathered_content(gathered, [blob]) as content:
        mount_erofs(index, [content], target, directio=True)
    _read_back(target)


def _try_fuse(folder: Path) -> None:
    target = folder / "fuse"
    target.mkdir()
    descriptor = mount_fuse(folder, target)
    try:
        fuse_mount.detach(target)
    finally:
        os.close(descriptor)


def _write_image(folder: Path) -> tuple[Path, Path, Path]:
    chunk = Chunk.of(_CONTENT)
    file = Inode(mode=stat.S_IFREG | 0o444, size_bytes=len(_CONTENT), extents=(Extent(0, (chunk,)),))
    root = Inode(mode=stat.S_IFDIR | 0o555, children={b"file": file})
    paths = folder / "index.erofs", folder / "blob", folder / "mounted"
    index, table = write_index(Tree(root))
    paths[0].write_bytes(index)
    (folder / "chunks.bin").write_bytes(table)
    paths[1].write_bytes(_CONTENT)
    paths[2].mkdir()
    return paths


def _read_back(target: Path) -> None:
    try:
        if (target / "file").read_bytes() != _CONTENT:
            raise OSError("what was read back is not what was written")
    finally:
        syscalls.detach(target)


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
