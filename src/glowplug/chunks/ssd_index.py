"""The SSD tier's SQLite database: opened, shared between processes, and started anew when it is broken.

The tier is a cache, so a damaged index costs refetching and nothing else: it is moved aside, and with it all
packs go, since nobody can tell any more what lies in them. ``index.db`` is a symbolic link to
``index.<n>.db``, because a process that still has the old database open would otherwise delete the new one's
journal when it closes. Every process notices at its next change that the link leads elsewhere, and does that
change again in the new database: none is ever made in the old one only.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from glowplug.chunks import ssd_errors
from glowplug.chunks.ssd_ballast import Ballast
from glowplug.chunks.ssd_errors import IndexDamaged, is_damage
from glowplug.chunks.ssd_packs import sync_folder
from glowplug.types.errors import DeadlineExceeded, ResourceExhausted

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

VERSION = 1
WRITE_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.002
_JOURNAL_BYTES = 16 << 20  # what a large commit leaves behind
_ATTEMPTS = 4  # how often the database may be replaced under one change
_DATABASE = re.compile(r"index\.([0-9]{1,9})\.db")
_SCHEMA = (
    # `place` tells pack and offset (ssd_packs.place_of), so this is in the order of the bytes on disk.
    """CREATE TABLE chunk (
        place INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
        size INTEGER NOT NULL CHECK (size BETWEEN 1 AND 1048576),
        used_s INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX chunk_by_use ON chunk (used_s)",
    # Ranges that hold no chunk any more but still take room; `id` is the chunk that was there, or empty.
    "CREATE TABLE hole (place INTEGER PRIMARY KEY, size INTEGER NOT NULL, id BLOB NOT NULL) STRICT",
    "CREATE TABLE pin (owner TEXT, hash BLOB, PRIMARY KEY (owner, hash)) STRICT, WITHOUT ROWID",
    "CREATE TABLE complete (name TEXT PRIMARY KEY, hash BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE total (used_bytes INTEGER NOT NULL, chunks INTEGER NOT NULL, removals INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0, 0, 0)",
)
_TABLES = {"chunk", "hole", "pin", "complete", "total"}


class Index:
    """``start`` fills a database that was just made, in the transaction that makes it.

    Safe to use from many threads, and by many processes at once; not across ``fork``. What is handed to
    :meth:`read` and :meth:`write` may be called again, so it has no effects that add up. On a full disk
    ``ballast`` is dropped for changes that may use it.
    """

    def __init__(self, root: Path, start: Callable[[sqlite3.Connection], None], ballast: Ballast) -> None:
        self._root = root
        self._ballast = ballast
        self._link = root / "index.db"
        self._start = start
        self._writing = threading.Lock()
        self._idle: list[tuple[int, sqlite3.Connection]] = []
        self._generation = 0
        self._identity = (0, 0)
        self._database = self._link
        self._is_closed = False
        self.is_read_only = False
        self.resets = 0
        try:
            self._writer = self._open()
        except OSError as error:
            if error.errno != errno.EROFS or not self._link.exists():
                raise ssd_errors.from_os(error, root) from error
            self._open_read_only()
        except sqlite3.Error as error:
            raise ssd_errors.from_sqlite(error, root) from error

    def read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """What ``query`` finds; it waits for no writer."""
        for _ in range(_ATTEMPTS):
            generation = self._generation
            try:
                with self._reader() as connection:
                    return query(connection)
            except OSError as error:
                raise ssd_errors.from_os(error, self._root) from error
            except sqlite3.Error as error:
                with self._alone(WRITE_TIMEOUT_S):
                    self._renew(error, generation)
        raise ssd_errors.unavailable(self._root, IndexDamaged("it is damaged again and again"))

    def write(
        self,
        change: Callable[[sqlite3.Connection], _T],
        timeout_s: float = WRITE_TIMEOUT_S,
        *,
        may_use_ballast: bool = True,
    ) -> _T:
        """Make a change that all processes see whole or not at all; durable when this returns.

        Raises ResourceExhausted, DeadlineExceeded or Unavailable, or whatever ``change`` raises: then
        nothing has changed.
        """
        if self.is_read_only:
            raise ssd_errors.read_only(self._root)
        with self._alone(timeout_s):
            for _ in range(_ATTEMPTS):
                try:
                    result = _transaction(self._writer, change, timeout_s)
                except OSError as error:
                    raise ssd_errors.from_os(error, self._root) from error
                except sqlite3.Error as error:
                    if not (may_use_ballast and self._make_room(error)):
                        self._renew(error, self._generation)
                    continue
                if self._is_current():
                    return result
                self._reopen()
        raise ssd_errors.unavailable(self._root, IndexDamaged("it is replaced again and again"))

    def _make_room(self, error: sqlite3.Error) -> bool:
        """Whether there is some now, after an error that tells of a full disk."""
        is_full = isinstance(ssd_errors.from_sqlite(error, self._root), ResourceExhausted)
        if not is_full or not self._ballast.drop():
            return False
        _LOG.warning("the disk of %s is full: room set aside is used to let go of chunks", self._root)
        return True

    def close(self) -> None:
        """Close the database."""
        with self._writing:
            self._is_closed = True
            self._writer.close()
            self._close_idle()

    @contextmanager
    def _alone(self, timeout_s: float) -> Iterator[None]:
        if not self._writing.acquire(timeout=timeout_s):
            raise DeadlineExceeded(
                f"The chunk index in {self._root} was busy for {timeout_s:g} s.",
                remedy="Look for a disk that hangs (`dmesg`), and try again.",
                stage="ssd_index",
            )
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile; there are as many as threads read at once."""
        try:
            generation, connection = self._idle.pop()
        except IndexError:
            generation, connection = self._generation, self._connect()
        try:
            yield connection
        finally:
            if generation == self._generation and not self._is_closed:
                self._idle.append((generation, connection))
            else:
                connection.close()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def _open(self) -> sqlite3.Connection:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._opening():
            try:
                return self._open_current()
            except (sqlite3.Error, IndexDamaged) as error:
                if not is_damage(error):
                    raise
                self._move_aside(error)
                return self._open_current()

    def _open_current(self) -> sqlite3.Connection:
        """A connection to the database that the link names, made first where there is none."""
        if self._link.exists() and not self._link.is_symlink():
            raise IndexDamaged("it is not the link that we make")
        if not self._link.exists():
            self._link_new()
        self._database = self._link.resolve()
        connection = self._connect()
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._identity = self._linked_identity()
        return connection

    def _link_new(self) -> None:
        names = [_DATABASE.match(path.name) for path in self._root.iterdir()]
        number = max((int(match[1]) for match in names if match), default=0) + 1
        database = self._root / f"index.{number}.db"
        database.touch(mode=0o600)
        link = self._root / "index.db.new"
        link.unlink(missing_ok=True)
        link.symlink_to(database.name)
        link.replace(self._link)
        sync_folder(self._root)
        self._clear_old(database.name)

    def _clear_old(self, kept: str) -> None:
        """Remove older databases; who has one open goes on until it looks at the link."""
        for path in self._root.iterdir():
            match = _DATABASE.match(path.name)
            if match and match[0] != kept:
                path.unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        # Never created here: an old database that another process removed must not come back empty.
        how = "immutable=1" if self.is_read_only else "mode=rw"
        path = f"file:{quote(str(self._database))}?{how}"
        connection = sqlite3.connect(
            path, timeout=WRITE_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = OFF")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        }
        if version == 0 and not tables:
            _transaction(connection, self._create, WRITE_TIMEOUT_S)
        elif version != VERSION or tables != _TABLES:
            raise IndexDamaged(f"it has version {version}, not {VERSION}, or other tables")
        elif len(connection.execute("SELECT 1 FROM total").fetchall()) != 1:
            raise IndexDamaged("its totals are missing")

    def _create(self, connection: sqlite3.Connection) -> None:
        for statement in _SCHEMA:
            connection.execute(statement)
        self._start(connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")

    def _open_read_only(self) -> None:
        """Read what a clean close or a checkpoint left; changes since are in a journal we cannot replay."""
        self.is_read_only = True
        self._database = self._link.resolve()
        _LOG.warning("%s is on a read-only disk: chunks are read, none is kept or removed", self._root)
        try:
            self._writer = self._connect()
        except sqlite3.Error as error:
            raise ssd_errors.from_sqlite(error, self._root) from error

    def _is_current(self) -> bool:
        return self._linked_identity() == self._identity

    def _linked_identity(self) -> tuple[int, int]:
        try:
            status = self._link.stat()
        except FileNotFoundError:
            return (0, 0)
        return status.st_dev, status.st_ino

    def _reopen(self) -> None:
        """Go on with the database that another process, or nobody, has put in place of ours."""
        _LOG.warning("the chunk index in %s was replaced, going on with the new one", self._root)
        old = self._writer
        try:
            self._writer = self._open()
        except OSError as error:
            raise ssd_errors.from_os(error, self._root) from error
        except sqlite3.Error as error:
            raise ssd_errors.from_sqlite(error, self._root) from error
        self._generation += 1
        with suppress(sqlite3.Error):
            old.close()
        self._close_idle()

    def _renew(self, error: sqlite3.Error, generation: int) -> None:
        """Have a sound database after this error, whoever puts it there; raise if it was sound."""
        if self._generation != generation:
            return  # another thread has dealt with it
        if self.is_read_only or (self._is_current() and not is_damage(error)):
            raise ssd_errors.from_sqlite(error, self._root) from error
        with self._opening():
            if self._is_current():
                self._move_aside(error)
        self._reopen()

    def _move_aside(self, error: Exception) -> None:
        """Give up the database; the caller holds the opening lock."""
        self.resets += 1
        _LOG.warning(
            "the chunk index in %s is damaged (%s): moved to index.damaged, all chunks are fetched again",
            self._root,
            error,
        )
        kept = self._root / "index.damaged"
        kept.unlink(missing_ok=True)
        os.link(self._link.resolve(), kept)
        self._link_new()

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """One process at a time opens, makes or replaces the database."""
        with closing(_Descriptor(self._root / "index.lock")) as lock:
            deadline_s = time.monotonic() + WRITE_TIMEOUT_S
            while not lock.try_lock():
                if time.monotonic() > deadline_s:
                    raise TimeoutError(errno.ETIMEDOUT, "another process opens the index for too long")
                time.sleep(_LOCK_POLL_S)
            yield


class _Descriptor:
    """A file to lock; closing it unlocks it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def _transaction(
    connection: sqlite3.Connection, change: Callable[[sqlite3.Connection], _T], timeout_s: float
) -> _T:
    connection.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = change(connection)
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return result
