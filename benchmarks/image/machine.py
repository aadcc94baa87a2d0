"""What is asked of the machine: its caches dropped, containers run, mounts made and page cache counted."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

RUN_TIMEOUT_S = 300.0
PAGE_BYTES = 4096
_CACHESTAT = 451
_MADV_POPULATE_WRITE = 23
CONTAINER_BYTES = 5 << 30  # of an import: what it reads, thrice, what it is, and the store's pages
_JUNK_BYTES = 1 << 40
_JUNK_BLOCK_BYTES = 16 << 20
_SPARE_BYTES = 400 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
_CONTAINER = """
mount --types tmpfs tmpfs "$1/tmp"
mount --types proc proc "$1/proc"
mount --bind /dev "$1/dev"
root=$1
shift
exec chroot "$root" env -i "$@"
"""
_WARM_UP = """
mount --types tmpfs tmpfs /mnt
mkdir /mnt/proc /mnt/dev
mount --types proc proc /mnt/proc
mount --bind /dev /mnt/dev
chroot / env true
"""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def drop_caches() -> None:
    """Write back what is dirty, forget all pages, names and inodes that can be read again; fill memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    # What starts a container is not what is measured.
    subprocess.run(
        ["unshare", "--mount", "bash", "-euc", _WARM_UP],
        check=True,
        capture_output=True,
    )
    fill_memory()


def fill_memory() -> None:
    """Have no free memory, as a machine that has run for a while: all that is left is clean page cache.

    A virtual machine gives free memory back to its host at once, and gets it again at about 0.6 GB/s at first
    use (free page reporting, ``mm/page_reporting.c``): more than many a difference that is to be measured.
    A page that the kernel takes from the page cache is backed. What fills it is a file without content.
    """
    file, block = _junk(), mmap.mmap(-1, _JUNK_BLOCK_BYTES)
    offset = int(time.monotonic() * 1e9) % _JUNK_BYTES // _JUNK_BLOCK_BYTES * _JUNK_BLOCK_BYTES
    # Twice what is free, because pages on their way to the host do not count. The kernel always keeps some.
    left_bytes = 2 * _meminfo_bytes("MemFree")
    while left_bytes > 0 and _meminfo_bytes("MemFree") > _SPARE_BYTES:
        left_bytes -= os.preadv(file, [block], offset)
        offset = (offset + _JUNK_BLOCK_BYTES) % _JUNK_BYTES


@contextmanager
def memory_left(size_bytes: int) -> Iterator[None]:
    """Hold all other memory, so that :func:`fill_memory` takes seconds."""
    held_bytes = max(0, _meminfo_bytes("MemAvailable") - size_bytes) // PAGE_BYTES * PAGE_BYTES
    if held_bytes == 0:
        yield
        return
    with mmap.mmap(-1, held_bytes) as held:
        held.madvise(_MADV_POPULATE_WRITE)
        yield


@cache
def _junk() -> int:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.truncate(_JUNK_BYTES)
        return os.dup(file.fileno())


def _meminfo_bytes(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    raise KeyError(name)


class Ran(NamedTuple):
    """How long a command took, and how much processor time, which a busy machine changes less."""

    seconds: float
    cpu_s: float


def container(root: Path, command: Sequence[str]) -> Ran:
    """Run a command with ``root`` as its root, in mounts of its own, from start to end."""
    settings = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    arguments = [
        "unshare",
        "--mount",
        "bash",
        "-euc",
        _CONTAINER,
        "container",
        str(root),
        *settings,
        *command,
    ]
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    took_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode != 0:
        raise RuntimeError(f"{command} failed in {root}: {ended.stderr[-2000:]}")
    return Ran(took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def processor_s(pid: int) -> float:
    """Processor time of a running process so far, its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tar_s(root: Path) -> float:
    """Read a whole tree with GNU tar.

    Into /dev/zero, which drops what it is given: tar skips content if its output is /dev/null, and through a
    pipe more than half of the time is the pipe's (3.8 s here with everything in page cache).
    """
    command = ["tar", "--create", "--blocking-factor=512", "--one-file-system", "--file=/dev/zero"]
    started_s = time.monotonic()
    subprocess.run([*command, f"--directory={root}", "."], check=True, timeout=RUN_TIMEOUT_S)
    return time.monotonic() - started_s


def read_tree(root: Path) -> None:
    """Have all of a tree in page cache, as far as memory goes."""
    tar_s(root)


def tree_bytes(root: Path) -> int:
    """The length of all files, each counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            found = os.lstat(f"{folder}/{name}")
            if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_size
    return total


def read_file(
    tool: Path, file: Path, way: str, block_bytes: int, blocks: int, threads: int, seed: int
) -> tuple[float, int]:
    """Read with the tool in C: seconds and bytes."""
    command = [str(tool), str(file), way, str(block_bytes), str(blocks), str(threads), str(seed)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    seconds, size_bytes = ended.stdout.split()
    return float(seconds), int(size_bytes)


def page_cache_bytes() -> int:
    """All of the page cache, also of files that nobody can open any more, but for what only fills it."""
    return _meminfo_bytes("Cached") - _meminfo_bytes("Shmem") - _cached_bytes_of(_junk())


def cached_bytes(*places: Path) -> int:
    """What of these files, and of all files below these folders, is in page cache (cachestat, Linux 6.5)."""
    total = 0
    for place in places:
        if place.is_file():
            total += _cached_of(place)
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                if stat.S_ISREG(path.lstat().st_mode):
                    total += _cached_of(path)
    return total


def _cached_of(path: Path) -> int:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _cached_bytes_of(file)
    finally:
        os.close(file)


def _cached_bytes_of(file: int) -> int:
    everything, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if _LIBC.syscall(_CACHESTAT, file, everything, counts, 0) != 0:
        raise OSError(ctypes.get_errno(), "cachestat")
    return counts[0] * PAGE_BYTES


def resident_bytes(pid: int) -> int:
    """A process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024


@contextmanager
def bound(source: Path, target: Path) -> Iterator[Path]:
    """Show ``source`` read-only at ``target``, as a container's root is."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    try:
        subprocess.run(["mount", "--options", "remount,bind,ro", str(target)], check=True)
        yield target
    finally:
        unmount(target)


def unmount(target: Path) -> None:
    """Take away what is mounted there."""
    for _ in range(50):
        if subprocess.run(["umount", str(target)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(target)], check=True)
