"""The control plane's database as transactions: a SQLite file of its own, or a PostgreSQL shared by several.

A PostgreSQL that restarts is waited for, a bounded while, and what was under way is done again; a transaction
of which nobody knows whether it was committed is never done twice. What the leader writes carries its term:
the row of the leader is locked and compared in the same transaction, so that whoever has been succeeded, even
while it stood still, changes nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Float,
    create_engine,
    event,
    insert,
    literal_column,
    select,
)
from sqlalchemy.exc import IntegrityError, InterfaceError, InternalError, OperationalError, SQLAlchemyError

from glowplug.control import schema
from glowplug.control.migrations import create_or_check
from glowplug.types.errors import Conflict, GlowplugError, NotLeader, SystemUnfit, Unavailable
from glowplug.types.paths import DATABASE_URL_VARIABLE

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""A PostgreSQL that restarts is back within a few seconds: so long is waited for it."""
ANSWER_WITHIN_S = 12.0
"""Beyond the statements' own limit on the server, for one that stands still."""
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 1.0
_THREADS = 4
_BUSY_TIMEOUT_S = 10
_POSTGRES_CONNECT = {
    "connect_timeout": 2,
    "application_name": "glowplug",
    # A server that is gone without a word is noticed after 5 + 2 x 2 s.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 9000,
}
_POSTGRES_SESSION = (
    # A leader that is stopped in the middle of a transaction holds the leader's row no longer than this.
    "SET idle_in_transaction_session_timeout = '2s'",
    "SET lock_timeout = '5s'",
    "SET statement_timeout = '10s'",
)
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
}
# A session that PostgreSQL ended because it stood still, and a primary that is none any more, are "internal".
_AWAY = (OperationalError, InterfaceError, InternalError)
_Result = TypeVar("_Result")


class Database:
    """Transactions, run in a few threads of its own. :meth:`close` when done.

    With a ``term`` every write is refused once another control plane leads. Opening creates what is missing;
    it raises SystemUnfit for a database we cannot use, Unavailable for one that does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        term: int | None = None,
        patience_s: float = PATIENCE_S,
        answer_within_s: float = ANSWER_WITHIN_S,
        threads: int = _THREADS,
    ) -> None:
        self.is_shared = not url.startswith("sqlite")
        """Whether other control planes may use it: a file is one machine's."""
        self._term = term
        self._patience_s = patience_s
        self._answer_within_s = answer_within_s
        self._engine = _open(url)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="database")

    async def close(self) -> None:
        """Let go of the database; a transaction that is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._engine.dispose)

    async def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do ``work``, which changes nothing. Raises Unavailable."""
        return await self._run(lambda: self._once(work))

    async def write_repeatable(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do ``work`` in one transaction; doing it twice does no harm. Raises Unavailable, NotLeader."""
        return await self._run(lambda: self._once(work, is_write=True))

    async def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do ``work`` in one transaction, exactly once. Raises Conflict, Unavailable, NotLeader.

        After Unavailable nobody knows whether it was done: the answer may be all that got lost.
        """
        key = secrets.token_hex(8)
        results: list[_Result] = []

        def once(connection: Connection) -> _Result:
            if results and _is_written(connection, key):
                return results[-1]
            result = work(connection)
            connection.execute(insert(schema.writes).values(key=key, written_at=self.now(connection)))
            results[:] = [result]
            return result

        try:
            return await self._run(lambda: self._once(once, is_write=True))
        except Conflict:
            # An attempt that was given up may have been committed while the next one was at it.
            is_done: bool = await self.read(lambda connection: _is_written(connection, key))
            if results and is_done:
                return results[-1]
            raise

    def now(self, connection: Connection) -> float:
        """Unix time by the database's clock, inside a transaction."""
        now = literal_column(_NOW[connection.dialect.name], Float)
        return float(connection.execute(select(now)).scalar_one())

    # -- inside ------------------------------------------------------------------------------------

    async def _run(self, transaction: Callable[[], _Result]) -> _Result:
        limit_s = max(self._patience_s, self._answer_within_s)
        try:
            async with asyncio.timeout(limit_s):
                return await self._attempts(transaction)
        except TimeoutError as error:
            raise _unavailable(f"no answer within {limit_s:g} s") from error

    async def _attempts(self, transaction: Callable[[], _Result]) -> _Result:
        deadline_s = time.monotonic() + self._patience_s
        wait_s = _RETRY_FIRST_S
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, transaction)
            except Unavailable as error:
                if isinstance(error, NotLeader) or time.monotonic() + wait_s >= deadline_s:
                    raise
                log.warning("the database does not answer, asking again: %s", error.details.get("cause"))
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_MAX_S)

    def _once(self, work: Callable[[Connection], _Result], *, is_write: bool = False) -> _Result:
        try:
            with self._engine.begin() as connection:
                if is_write and self._term is not None:
                    _check_term(connection, self._term)
                return work(connection)
        except IntegrityError as error:
            raise Conflict(
                "Somebody else wrote the same thing to the database at the same moment.", remedy="Try again."
            ) from error
        except SQLAlchemyError as error:
            if self.is_shared and isinstance(error, _AWAY):
                raise _unavailable(_cause(error)) from error
            raise _failed(error) from error


def not_leader(leader: str, term: int) -> NotLeader:
    """The error of whoever is asked, or acts, without being the leader."""
    return NotLeader(
        f"The leader is {leader or 'not known yet'}; this control plane is not.",
        remedy=f"Ask it: glowplug --url {leader}." if leader else "Try again in a few seconds.",
        leader=leader,
        term=term,
        retry_after_s=1,
    )


def _check_term(connection: Connection, term: int) -> None:
    """Hold the leader's row as it is until this transaction ends. Raises NotLeader if it is not ours."""
    table = schema.leadership
    row = connection.execute(select(table.c.term, table.c.address).with_for_update(read=True)).one()
    if row.term != term:
        raise not_leader(row.address, row.term)


def _is_written(connection: Connection, key: str) -> bool:
    table = schema.writes
    return connection.execute(select(table.c.key).where(table.c.key == key)).first() is not None


def _unavailable(cause: str) -> Unavailable:
    return Unavailable(
        "The database does not answer.",
        remedy="Ready replicas go on serving. Look at PostgreSQL, then try again. A change that was under "
        "way may have been made: glowplug status.",
        retry_after_s=5,
        cause=cause,
    )


def _failed(error: SQLAlchemyError) -> GlowplugError:
    return GlowplugError(
        f"The database failed: {type(error).__name__}.",
        remedy="Check free disk space and the database's health.",
        cause=_cause(error),
    )


def _cause(error: SQLAlchemyError) -> str:
    """What the driver said; SQLAlchemy's own text would repeat the statement."""
    return str(getattr(error, "orig", None) or error).strip()


def _open(url: str) -> Engine:
    is_sqlite = url.startswith("sqlite")
    try:
        if is_sqlite:
            _create_private_file(Path(url.removeprefix("sqlite:///")))
        # What is written may be a secret: no error of the driver's may show it.
        engine = create_engine(
            url,
            pool_pre_ping=not is_sqlite,
            hide_parameters=True,
            connect_args={} if is_sqlite else dict(_POSTGRES_CONNECT),
        )
        event.listen(engine, "connect", _prepare_sqlite if is_sqlite else _prepare_postgres)
        if is_sqlite:
            event.listen(engine, "begin", _begin_immediately)
    except (SQLAlchemyError, OSError, ImportError) as error:
        raise _unusable(str(error)) from error
    try:
        with engine.begin() as connection:
            create_or_check(connection, literal_column(_NOW[engine.dialect.name], Float))
    except SQLAlchemyError as error:
        engine.dispose()
        if isinstance(error, OperationalError) and not is_sqlite:
            raise _unavailable(_cause(error)) from error
        raise _unusable(_cause(error)) from error
    return engine


def _unusable(cause: str) -> SystemUnfit:
    return SystemUnfit(
        f"The database cannot be used: {cause}.",
        remedy="If it is damaged, restore it from a copy or move it away to start empty; for "
        f"PostgreSQL check {DATABASE_URL_VARIABLE} and install glowplug[postgres].",
    )


def _create_private_file(path: Path) -> None:
    """SQLite gives its journal files the mode of the database: it must be private from its first byte."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _prepare_postgres(connection: Any, _record: object) -> None:
    connection.autocommit = True
    for statement in _POSTGRES_SESSION:
        connection.execute(statement)
    connection.autocommit = False


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # We say BEGIN ourselves (below): the driver's own idea of when a transaction starts is too late.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_S * 1000}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: Connection) -> None:
    # Read-then-write transactions must take the write lock first, or two of them deadlock.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
