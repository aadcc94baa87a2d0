"""Cases about reading, mapping and moving content."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.image.lazy.posix_observe import (
    TIMEOUT_S,
    Case,
    Observation,
    below,
    digest,
    open_and_close,
    outcome,
    paths_below,
)
from tests.image.lazy.posix_tree import BIG_BYTES, MIB


def every_file_reads_back(root: Path) -> Observation:
    return [
        (path, digest(Path(os.fsdecode(below(root, path))).read_bytes()))
        for path in paths_below(root)
        if stat.S_ISREG(os.lstat(below(root, path)).st_mode)
    ]


def reads_at_odd_places(root: Path) -> Observation:
    seen = []
    for name in ("big.bin", "sparse.bin", "empty", "mebibyte.bin"):
        descriptor = os.open(root / name, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        places = (0, 1, 4095, 4096, MIB - 1, MIB, 2 * MIB + 4, size - 1, size, size + 1, size + (1 << 40))
        for offset in places:
            if offset >= 0:
                seen.append(digest(os.pread(descriptor, 5000, offset)))
        buffers = [bytearray(7), bytearray(4096), bytearray(100)]
        got = os.preadv(descriptor, buffers, 11)
        seen.append((got, digest(b"".join(buffers))))
        seen.append(outcome(lambda fd=descriptor: os.lseek(fd, -1, os.SEEK_SET)))
        seen.append(os.lseek(descriptor, -min(size, 10), os.SEEK_END))
        seen.append(os.read(descriptor, 100))
        seen.append(outcome(lambda fd=descriptor: os.pread(fd, 10, -1)))
        os.close(descriptor)
    return seen


def a_folder_is_not_read_as_a_file(root: Path) -> Observation:
    descriptor = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return outcome(lambda: os.read(descriptor, 10))
    finally:
        os.close(descriptor)


def many_threads_read_one_file(root: Path) -> Observation:
    descriptor = os.open(root / "big.bin", os.O_RDONLY)
    step = 65_537
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda at: os.pread(descriptor, step, at), range(0, BIG_BYTES, step)))
    os.close(descriptor)
    return digest(b"".join(pieces))


def shared_memory_maps(root: Path) -> Observation:
    with (root / "big.bin").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as seen:
            whole = digest(seen[:])
        with mmap.mmap(file.fileno(), 8192, mmap.MAP_SHARED, mmap.PROT_READ, offset=MIB - 4096) as seen:
            part = digest(seen[:])
    with (root / "hello.txt").open("rb") as file:  # what lies behind the end in its last page is zero
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as seen:
            short = seen[:]
        writable = outcome(lambda: str(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_WRITE)))
    return whole, part, short, writable


def private_memory_maps_can_be_written_and_do_not_reach_the_file(root: Path) -> Observation:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with (root / "big.bin").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=protection) as mine:
            mine[5:9] = b"mine"
            mine[MIB : MIB + 4] = b"mine"
            changed = digest(mine[:])
        return changed, digest(file.read())


def the_last_page_of_a_map_is_padded_with_zeros(root: Path) -> Observation:
    with (root / "hello.txt").open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        where = libc.mmap(
            None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0)
        )
        page = ctypes.string_at(where, 4096)
        libc.munmap(ctypes.c_void_p(where), ctypes.c_size_t(4096))
    assert page[size:] == bytes(4096 - size)
    return digest(page)


def direct_reads(root: Path) -> Observation:
    if outcome(lambda: open_and_close(root / "big.bin", os.O_DIRECT)) == "EINVAL":
        return "EINVAL"
    seen = []
    for name in ("big.bin", "sparse.bin", "page.bin"):
        descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 2 * MIB) as buffer:  # aligned to a page, as O_DIRECT wants it
            for offset in (0, 4096, MIB, 2 * MIB):
                got = os.preadv(descriptor, [buffer], offset)
                seen.append((got, digest(buffer[:got])))
        os.close(descriptor)
    return seen


def sendfile_to_a_socket_and_to_a_file(root: Path) -> Observation:
    left, right = socket.socketpair()
    with left, right, (root / "big.bin").open("rb") as file, ThreadPoolExecutor(1) as pool:

        def send() -> None:
            sent = 0
            while sent < BIG_BYTES:
                sent += os.sendfile(left.fileno(), file.fileno(), sent, BIG_BYTES - sent)
            left.shutdown(socket.SHUT_WR)

        sending = pool.submit(send)
        received = bytearray()
        while data := right.recv(MIB):
            received += data
        sending.result(TIMEOUT_S)
        target = os.memfd_create("target")
        copied = os.sendfile(target, file.fileno(), 1000, 200_000)
        contents = os.pread(target, MIB, 0)
        os.close(target)
    return digest(received), copied, digest(contents)


def splice_into_a_pipe(root: Path) -> Observation:
    reader, writer = os.pipe()
    received = bytearray()
    with (root / "big.bin").open("rb") as file:
        while moved := os.splice(file.fileno(), writer, 65_536, offset_src=len(received)):
            part = os.read(reader, moved)
            received += part
    os.close(reader)
    os.close(writer)
    return digest(received)


def copy_file_range_to_another_filesystem(root: Path) -> Observation:
    """Which it refuses between different filesystems (EXDEV); then programs read and write."""
    target = os.memfd_create("target")
    with (root / "big.bin").open("rb") as file:
        seen = outcome(lambda: os.copy_file_range(file.fileno(), target, 4096, 0, 0))
    os.close(target)
    return seen


def advice_and_locks_are_taken(root: Path) -> Observation:
    with (root / "hello.txt").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        fcntl.flock(file, fcntl.LOCK_SH)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (root / "hello.txt").open("rb") as other:
            refused = outcome(lambda: fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB))
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_SH)
        return refused


def syncing_a_reader(root: Path) -> Observation:
    with (root / "hello.txt").open("rb") as file:
        return outcome(lambda: os.fsync(file.fileno())), outcome(lambda: os.fdatasync(file.fileno()))


CONTENT: list[Case] = [
    every_file_reads_back,
    reads_at_odd_places,
    a_folder_is_not_read_as_a_file,
    many_threads_read_one_file,
    shared_memory_maps,
    private_memory_maps_can_be_written_and_do_not_reach_the_file,
    the_last_page_of_a_map_is_padded_with_zeros,
    direct_reads,
    sendfile_to_a_socket_and_to_a_file,
    splice_into_a_pipe,
    copy_file_range_to_another_filesystem,
    advice_and_locks_are_taken,
    syncing_a_reader,
]
