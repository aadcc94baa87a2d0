"""The planner's memory on disk: what was decided is written down before any of it is done.

SQLite in the state directory. One row holds the whole state (:class:`FleetState`), so that a commit is all
or nothing; beside it lie the events, and the records that still have to get into the supply log. One leader:
a lock that the kernel drops when its holder dies, and, should two have it all the same (another machine, a
copied file), an epoch that every commit checks: who is no longer the newest leader can write nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from glowplug.kernel.exclusive import exclusive
from glowplug.pool.market.supply_log import SupplyRecord
from glowplug.pool.planner.decision import Event, EventKind
from glowplug.pool.planner.state import FleetState
from glowplug.types.errors import Conflict, InvalidInput, NotFound, SystemUnfit

FILE_NAME = "ledger.db"
_KEPT_EVENTS = 10_000
_BUSY_TIMEOUT_MS = 10_000

_METADATA = MetaData()
_LEDGER = Table(
    "ledger",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("fleet", String(32), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("report", LargeBinary, nullable=False),
)
_OUTBOX = Table(
    "outbox",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("record", LargeBinary, nullable=False),
)
_EVENTS = Table(
    "events",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("subject", String, nullable=False),
    Column("words", String, nullable=False),
)
_ONLY = 1


class Ledger:
    """Opened by its one leader, with :meth:`lead`. Not safe to use from two threads at once."""

    def __init__(self, engine: Engine, epoch: int, fleet: str) -> None:
        self._engine = engine
        self._epoch = epoch
        self._fleet = fleet

    @classmethod
    @contextmanager
    def lead(cls, folder: Path, fleet: str, nonce: str) -> Iterator[Ledger]:
        """Lead the fleet whose ledger lies in ``folder``; it is made, with ``nonce``, if there is none.

        Raises Conflict when another planner leads it, InvalidInput when it is of another fleet, SystemUnfit.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise _unusable(folder, str(problem)) from problem
        with _only_leader(folder):
            engine = _open(folder / FILE_NAME)
            try:
                with _sqlite_errors(folder):
                    _METADATA.create_all(engine)
                    with engine.begin() as connection:
                        epoch = _take_over(connection, fleet, nonce)
                yield cls(engine, epoch, fleet)
            finally:
                engine.dispose()

    def load(self) -> FleetState:
        """The state as last committed. Raises SystemUnfit."""
        with self._transaction() as connection:
            return FleetState.from_json(connection.execute(select(_LEDGER.c.state)).scalar_one())

    def commit(
        self,
        state: FleetState,
        supply: Iterable[SupplyRecord] = (),
        events: Iterable[Event] = (),
        report: bytes = b"",
    ) -> None:
        """Write everything down, or nothing. An empty ``report`` keeps the one before.

        Raises Conflict when another planner has taken over, SystemUnfit.
        """
        changes: dict[str, Any] = {"state": state.to_json()}
        if report:
            changes["report"] = report
        with self._transaction() as connection:
            found = connection.execute(
                update(_LEDGER).where(_LEDGER.c.id == _ONLY, _LEDGER.c.epoch == self._epoch).values(changes)
            )
            if found.rowcount != 1:
                raise Conflict(
                    f"Another planner leads the fleet {self._fleet} now.",
                    remedy="One is enough: this one ends.",
                    epoch=self._epoch,
                )
            records = [{"record": record.model_dump_json().encode()} for record in supply]
            if records:
                connection.execute(insert(_OUTBOX), records)
            told = [
                {"at_s": each.at_s, "kind": each.kind.value, "subject": each.subject, "words": each.words}
                for each in events
            ]
            if told:
                connection.execute(insert(_EVENTS), told)
                _prune(connection)

    def unlogged(self) -> list[tuple[int, SupplyRecord]]:
        """Records that are not known to be in the supply log, oldest first. Raises SystemUnfit."""
        with self._transaction() as connection:
            rows = connection.execute(select(_OUTBOX).order_by(_OUTBOX.c.id)).all()
        return [(row.id, SupplyRecord.model_validate_json(row.record)) for row in rows]

    def logged(self, last: int) -> None:
        """Everything up to this one is in the supply log. Raises SystemUnfit."""
        with self._transaction() as connection:
            connection.execute(delete(_OUTBOX).where(_OUTBOX.c.id <= last))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with _sqlite_errors(Path(str(self._engine.url.database))), self._engine.begin() as connection:
            yield connection


class LedgerView:
    """What a ledger says, for whoever does not lead: reading changes nothing and holds up nobody."""

    def __init__(self, state: FleetState, events: Sequence[Event], report: bytes, is_led: bool) -> None:
        self.state = state
        self.events = events
        self.report = report
        self.is_led = is_led

    @classmethod
    def read(cls, folder: Path, events: int = 20) -> LedgerView:
        """The ledger in ``folder`` with its newest events, oldest first. Raises NotFound, SystemUnfit."""
        file = folder / FILE_NAME
        if not file.exists():
            raise _none_yet(folder)
        engine = create_engine(f"sqlite:///{file}")
        try:
            with _sqlite_errors(folder), engine.begin() as connection:
                if not inspect(connection).has_table(_LEDGER.name):
                    raise _none_yet(folder)  # one is just starting
                row = connection.execute(select(_LEDGER.c.state, _LEDGER.c.report)).one_or_none()
                newest = connection.execute(select(_EVENTS).order_by(_EVENTS.c.id.desc()).limit(events)).all()
        finally:
            engine.dispose()
        if row is None:
            raise _none_yet(folder)
        told = [Event(found.at_s, EventKind(found.kind), found.subject, found.words) for found in newest]
        return cls(FleetState.from_json(row.state), told[::-1], row.report, _is_led(folder))


def _none_yet(folder: Path) -> NotFound:
    return NotFound(
        f"No planner has run here: there is no ledger in {folder}.",
        remedy="Start one with `glowplug pool run FILE.yaml`.",
    )


def _take_over(connection: Connection, fleet: str, nonce: str) -> int:
    row = connection.execute(select(_LEDGER.c.fleet, _LEDGER.c.epoch)).one_or_none()
    if row is None:
        state = FleetState(fleet, nonce)
        connection.execute(
            insert(_LEDGER).values(id=_ONLY, fleet=fleet, epoch=1, state=state.to_json(), report=b"")
        )
        return 1
    if row.fleet != fleet:
        raise InvalidInput(
            f"The ledger is of the fleet {row.fleet}, and the pool file says {fleet}.",
            remedy=f"Set run.fleet to {row.fleet}, or name another state directory: "
            "machines of a fleet without its ledger would be orphans.",
        )
    connection.execute(update(_LEDGER).values(epoch=row.epoch + 1))
    return int(row.epoch) + 1


def _prune(connection: Connection) -> None:
    newest = connection.execute(select(func.max(_EVENTS.c.id))).scalar_one()
    connection.execute(delete(_EVENTS).where(_EVENTS.c.id <= newest - _KEPT_EVENTS))


@contextmanager
def _only_leader(folder: Path) -> Iterator[None]:
    taken = Conflict(
        f"Another planner runs on {folder}.", remedy="One is enough. `glowplug pool status` shows it."
    )
    with exclusive(folder / "leader.lock", taken):
        yield


def _is_led(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "leader.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open(file: Path) -> Engine:
    # SQLite gives its journal files the mode of the database: it must be private from its first byte.
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as problem:
        raise _unusable(file, str(problem)) from problem
    engine = create_engine(f"sqlite:///{file}")
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin_immediately)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _sqlite_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as problem:
        raise _unusable(where, str(problem.__cause__ or problem)) from problem


def _unusable(where: Path, why: str) -> SystemUnfit:
    return SystemUnfit(
        f"The planner's ledger at {where} cannot be used: {why}.",
        remedy="Check the disk and who may write there. What was committed before is safe.",
        file=str(where),
    )
