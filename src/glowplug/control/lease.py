"""The row that says who leads: taken when it has run out, renewed by its holder, given up at an orderly end.

Its end is measured by the database's clock, which all candidates share. A term is larger than all before it,
and at least Unix time in seconds: also a database that was made anew, or brought back from a copy, does not
name a term that an agent has seen already.

With SQLite nobody else can be a candidate, as the state directory is locked: the row only counts terms.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from glowplug.control import schema
from glowplug.control.database import Database
from glowplug.control.timings import Timings


@dataclass(frozen=True)
class Candidate:
    """One control plane. ``id`` stays its own across restarts; ``address`` is where others reach it."""

    id: str
    address: str


@dataclass(frozen=True)
class LeaderRow:
    """Who leads, and for how much longer by the database's clock unless it renews."""

    term: int
    holder: str
    address: str
    left_s: float


@dataclass(frozen=True)
class Won:
    """We lead. ``was`` led before: another, ourselves, or nobody."""

    term: int
    was: LeaderRow


class Lease:
    """The row, as typed calls of one candidate. Each raises Unavailable."""

    def __init__(self, database: Database, me: Candidate, lease_s: float) -> None:
        self._database = database
        self._me = me
        self._lease_s = lease_s

    @property
    def is_shared(self) -> bool:
        """Whether there can be other candidates."""
        return self._database.is_shared

    @property
    def address(self) -> str:
        """Where others reach this candidate."""
        return self._me.address

    async def close(self) -> None:
        """Let go of the database; what is held runs out."""
        await self._database.close()

    async def take(self) -> Won | LeaderRow:
        """Begin a term if nobody else's lease runs; else who holds it."""
        seen = await self._database.read(self._look)
        if not self._is_free(seen):
            return seen
        return await self._database.write_repeatable(self._take)

    async def renew(self, term: int) -> bool:
        """Lead for another ``lease_s``, also after it ran out as long as nobody took it. False if one did."""
        table = schema.leadership

        def work(connection: Connection) -> bool:
            expires_at = self._database.now(connection) + self._lease_s
            ours = update(table).where(table.c.term == term, table.c.holder == self._me.id)
            return bool(connection.execute(ours.values(expires_at=expires_at)).rowcount)

        return await self._database.write_repeatable(work)

    async def give_up(self, term: int) -> None:
        """Let the next candidate begin at once."""
        table = schema.leadership
        ours = update(table).where(table.c.term == term, table.c.holder == self._me.id)
        await self._database.write_repeatable(lambda c: c.execute(ours.values(expires_at=0.0)).rowcount)

    async def look(self) -> LeaderRow:
        """Who leads."""
        return await self._database.read(self._look)

    # -- inside ------------------------------------------------------------------------------------

    def _look(self, connection: Connection) -> LeaderRow:
        return self._row(connection, is_to_change=False)

    def _row(self, connection: Connection, *, is_to_change: bool) -> LeaderRow:
        query = select(schema.leadership)
        row = connection.execute(query.with_for_update() if is_to_change else query).one()
        # Read after the row was locked: waiting for the lock takes time.
        left_s = row.expires_at - self._database.now(connection)
        return LeaderRow(row.term, row.holder, row.address, left_s)

    def _is_free(self, row: LeaderRow) -> bool:
        # Whoever has our id and was before us has ended: it held the lock of our state directory.
        return not self.is_shared or row.holder == self._me.id or row.left_s <= 0

    def _take(self, connection: Connection) -> Won | LeaderRow:
        row = self._row(connection, is_to_change=True)
        if not self._is_free(row):
            return row
        now = self._database.now(connection)
        won = Won(max(row.term + 1, int(now)), row)
        connection.execute(
            update(schema.leadership).values(
                term=won.term,
                holder=self._me.id,
                address=self._me.address,
                expires_at=now + self._lease_s,
            )
        )
        return won


def open_lease(url: str, me: Candidate, timings: Timings) -> Lease:
    """The lease in the database at ``url``, asked by a thread of its own. Raises SystemUnfit, Unavailable.

    It does not wait for a database that is away: who leads must be known now, or is not known.
    """
    database = Database(url, patience_s=0.0, answer_within_s=timings.lease_s, threads=1)
    return Lease(database, me, timings.lease_s)
