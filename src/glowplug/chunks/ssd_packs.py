"""Pack files: chunk bodies one after the other, appended to by one writer at a time, never written twice.

A pack's number is never given out again, not even after the pack was deleted or the index was lost: whoever
remembers where a chunk lay finds its bytes there, a hole, or no file, but never another chunk put in its
place. For this the pack with the highest number is never deleted.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES, aligned
from glowplug.chunks.run import Run

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"([0-9]{8})\.pack")
_MAX_NUMBER = 10**8 - 1
_PLACE_BITS = 32  # of a place, for the block within the pack: 16 TiB
_OPEN_PACKS = 128  # RLIMIT_NOFILE is 20,000 for everything in the process
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # <linux/falloc.h>


class Location(NamedTuple):
    """Where a chunk's bytes start."""

    pack: int
    offset: int


def place_of(pack: int, offset: int) -> int:
    """A location as one number, in the order of packs and offsets: the key of the index."""
    return pack << _PLACE_BITS | offset // ALIGN_BYTES


def location_of(place: int) -> Location:
    """What :func:`place_of` was made from."""
    return Location(pack_of(place), (place & ((1 << _PLACE_BITS) - 1)) * ALIGN_BYTES)


def pack_of(place: int) -> int:
    """The pack of a place."""
    return place >> _PLACE_BITS


class PackFile(int):
    """A descriptor to read a pack with. It stays open as long as somebody holds this very object.

    So a reader is safe from the cache closing it, provided that it keeps the object, not a copy as plain int,
    until its read has returned.
    """

    def __del__(self) -> None:
        os.close(self)


class LockedPack:
    """A pack that nobody else may append to, delete, or look for leaked space in. Dies with its holder."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.descriptor = descriptor
        # The kernel lets one thread at a time append to a file while others spin: 8 threads on 2 cores filled
        # 1.3 GB/s, and 1.8 GB/s when they wait here (medians of 7).
        self._appending = threading.Lock()

    def is_linked(self) -> bool:
        """Whether the file still has its name: a new index removes packs under everybody's feet."""
        return os.fstat(self.descriptor).st_nlink > 0

    def size_bytes(self) -> int:
        """The file's length, as whole blocks."""
        return aligned(os.fstat(self.descriptor).st_size)

    def append(self, run: Run, offset: int) -> None:
        """Write chunks, each with the zeros that pad it to whole blocks. Raises OSError."""
        with self._appending:
            run.write(self.descriptor, offset)

    def release(self) -> None:
        """Let others have it."""
        # Explicitly: a child forked at this very moment may still share the descriptor.
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


class PackFolder:
    """All packs of one store. Safe to use from many threads and processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._highest = 0
        self._readable: OrderedDict[tuple[int, bool], PackFile] = OrderedDict()  # past the cache or not
        self._lock = threading.Lock()
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def make(self, highest: int = 0) -> None:
        """Make the folder where there is none; ``highest`` is the last pack that is known to have been."""
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._highest = max(self._highest, highest)

    def path_of(self, number: int) -> Path:
        """The file of a pack."""
        return self._path / f"{number:08d}.pack"

    def numbers(self) -> list[int]:
        """The packs that there are, ascending."""
        names = (_NAME.fullmatch(path.name) for path in self._path.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def sizes(self) -> dict[int, int]:
        """The length of each pack."""
        found: dict[int, int] = {}
        for number in self.numbers():
            try:
                found[number] = self.path_of(number).stat().st_size
            except FileNotFoundError:
                continue
        return found

    def open(self, number: int, *, past_cache: bool = False) -> PackFile:
        """A descriptor to read the pack with; see PackFile. Raises OSError.

        ``past_cache``: where the filesystem can, reads go past the page cache; they must be of whole blocks,
        to memory that is aligned alike.
        """
        key = number, past_cache
        with self._lock:
            known = self._readable.get(key)
            if known is not None and os.fstat(known).st_nlink > 0:
                self._readable.move_to_end(key)
                return known
        opened = PackFile(self._open_new(number, past_cache))
        with self._lock:
            self._readable[key] = opened
            while len(self._readable) > _OPEN_PACKS:
                self._readable.popitem(last=False)
        return opened

    def _open_new(self, number: int, past_cache: bool) -> int:
        if past_cache:
            try:
                return _open_regular(self.path_of(number), os.O_RDONLY | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # tmpfs before Linux 6.6, and others
                    raise
        return _open_regular(self.path_of(number), os.O_RDONLY)

    def read(self, location: Location, size_bytes: int) -> bytes:
        """What lies there, short if the pack ends before. Raises OSError."""
        pack = self.open(location.pack)
        data = os.pread(pack, size_bytes, location.offset)
        while len(data) < size_bytes:
            more = os.pread(pack, size_bytes - len(data), location.offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Give back the descriptors that no reader holds."""
        with self._lock:
            self._readable.clear()

    def take(self, limit_bytes: int) -> LockedPack:
        """A pack to append to that has room below the limit: one that was begun before, or a new one."""
        for number, size in self.sizes().items():
            if size + CHUNK_BYTES <= limit_bytes:
                locked = self.lock(number)
                if locked is not None:
                    return locked
        return self.create()

    def create(self) -> LockedPack:
        """A new, empty pack. Raises OSError."""
        while True:
            # Also after those that somebody else has deleted.
            number = max(self._highest, *self.numbers(), 0) + 1
            if number > _MAX_NUMBER:
                raise OSError(errno.ENOSPC, "no pack number is left", str(self._path))
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(self.path_of(number), flags, 0o600)
            except FileExistsError:
                continue  # another process was faster
            self._highest = number
            if _try_lock(descriptor):
                sync_folder(self._path)
                return LockedPack(number, descriptor)

    def lock(self, number: int) -> LockedPack | None:
        """Sole use of a pack, or None while another writer has it, or if it is gone."""
        try:
            descriptor = _open_regular(self.path_of(number), os.O_RDWR)
        except FileNotFoundError:
            return None
        if not _try_lock(descriptor):
            return None
        locked = LockedPack(number, descriptor)
        if not locked.is_linked():
            locked.release()
            return None
        return locked

    def delete(self, number: int) -> None:
        """Remove the file. Who has it open, also a mounted filesystem, keeps its bytes."""
        with self._lock:
            for key in [key for key in self._readable if key[0] == number]:
                del self._readable[key]
        with suppress(FileNotFoundError, IsADirectoryError):
            self.path_of(number).unlink()

    def start_over(self) -> None:
        """Delete every pack, after beginning one with a number that none of them had."""
        self.make()
        old = self.numbers()
        self.create().release()
        for number in old:
            self.delete(number)

    def punch(self, number: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Give the room of these byte ranges (start, end) back to the filesystem. Raises OSError."""
        try:
            descriptor = _open_regular(self.path_of(number), os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            for start, end in ranges:
                self._punch_range(descriptor, start, end)
        finally:
            os.close(descriptor)

    def _punch_range(self, descriptor: int, start: int, end: int) -> None:
        if self._fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, start, end - start) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EOPNOTSUPP:
            raise OSError(number, os.strerror(number), str(self._path))
        _LOG.warning("%s cannot give back parts of a file: its room returns pack by pack", self._path)


def sync_folder(path: Path) -> None:
    """Return once the names in the folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_regular(path: Path, flags: int) -> int:
    """Raises FileNotFoundError for whatever else has the name."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP):
            raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
    return descriptor


def _try_lock(descriptor: int) -> bool:
    """Lock it; if somebody else holds it, close it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise
        return False
    return True
