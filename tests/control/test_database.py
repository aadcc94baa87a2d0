"""Transactions on both databases: done once whatever gets lost, refused once another leads; the lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, select
from tests.control.conftest import app_spec
from tests.postgres import PostgresServer

from glowplug.control import schema
from glowplug.control.database import Database
from glowplug.control.database_url import check_shown_url
from glowplug.control.lease import Candidate, LeaderRow, Lease, Won
from glowplug.control.store import Store
from glowplug.types.errors import InvalidInput, NotLeader, Unavailable
from glowplug.types.spec import AppSpec

SPEC = AppSpec.model_validate(app_spec())
ONE, TWO = Candidate("one", "http://one:8080"), Candidate("two", "http://two:8080")
LONG_S = 600.0


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.engine_url


class LosesAnswers(Database):
    """The next transactions are done, and nobody hears of it."""

    losses = 0

    def _once(self, work: Callable[[Connection], Any], *, is_write: bool = False) -> Any:
        result = super()._once(work, is_write=is_write)
        if self.losses:
            self.losses -= 1
            raise Unavailable("Simulated: the connection broke.")
        return result


async def test_a_write_whose_answer_gets_lost_is_done_once(url: str) -> None:
    database = LosesAnswers(url)
    store = Store(database)
    database.losses = 2
    made = await store.add_deployment(SPEC, {"web": "img"}, {}, 1.0)
    assert made.version == 1
    assert await store.deployments() == [made]
    await store.close()


async def test_a_write_is_refused_once_another_leads(url: str) -> None:
    lease = Lease(Database(url), ONE, LONG_S)
    old = await lease.take()
    assert isinstance(old, Won)
    store = Store(Database(url, term=old.term))
    await store.add_deployment(SPEC, {"web": "img"}, {}, 1.0)
    new = await lease.take()
    assert isinstance(new, Won)
    with pytest.raises(NotLeader) as refused:
        await store.add_deployment(SPEC, {"web": "img"}, {}, 2.0)
    assert refused.value.details["term"] == new.term
    assert len(await store.deployments()) == 1
    await store.close()
    await lease.close()


async def test_terms_grow_and_are_no_smaller_than_unix_time(url: str) -> None:
    lease = Lease(Database(url), ONE, LONG_S)
    before = int(time.time())
    terms = []
    for _ in range(3):
        won = await lease.take()
        assert isinstance(won, Won)
        terms.append(won.term)
    assert terms[0] >= before - 1
    assert terms[0] < terms[1] < terms[2]
    await lease.close()


@pytest.fixture
async def leases(postgres: PostgresServer) -> AsyncIterator[tuple[Lease, Lease]]:
    """Two candidates of one PostgreSQL."""
    made = [Lease(Database(postgres.engine_url, patience_s=0.0), who, LONG_S) for who in (ONE, TWO)]
    yield made[0], made[1]
    for lease in made:
        await lease.close()


async def test_one_of_two_candidates_leads_until_it_gives_up(leases: tuple[Lease, Lease]) -> None:
    one, two = leases
    first = await one.take()
    assert isinstance(first, Won)
    seen = await two.take()
    assert isinstance(seen, LeaderRow)
    assert (seen.term, seen.address) == (first.term, ONE.address)
    assert 0 < seen.left_s <= LONG_S
    assert await one.renew(first.term)
    await one.give_up(first.term)
    second = await two.take()
    assert isinstance(second, Won)
    assert second.term > first.term
    assert not await one.renew(first.term)
    await one.give_up(first.term)  # of a term that is over: changes nothing
    assert isinstance(await one.take(), LeaderRow)


async def test_a_lease_that_ran_out_may_be_renewed_until_somebody_takes_it(
    leases: tuple[Lease, Lease], postgres: PostgresServer
) -> None:
    one, two = leases
    won = await one.take()
    assert isinstance(won, Won)
    postgres.execute("UPDATE leadership SET expires_at = 1")
    assert await one.renew(won.term)
    assert isinstance(await two.take(), LeaderRow)
    postgres.execute("UPDATE leadership SET expires_at = 1")
    assert isinstance(await two.take(), Won)
    assert not await one.renew(won.term)


async def test_candidates_at_once_make_one_leader(postgres: PostgresServer) -> None:
    databases = await asyncio.gather(
        *(asyncio.to_thread(Database, postgres.engine_url, patience_s=0.0) for _ in range(4))
    )
    leases = [Lease(database, Candidate(f"c{n}", ""), LONG_S) for n, database in enumerate(databases)]
    answers = await asyncio.gather(*(lease.take() for lease in leases))
    assert sum(isinstance(answer, Won) for answer in answers) == 1
    for lease in leases:
        await lease.close()


async def test_a_leader_that_stands_still_in_a_transaction_holds_up_nobody(
    leases: tuple[Lease, Lease], postgres: PostgresServer
) -> None:
    one, two = leases
    won = await one.take()
    assert isinstance(won, Won)
    postgres.execute("UPDATE leadership SET expires_at = 1")
    stalled = Database(postgres.engine_url, term=won.term, patience_s=0.0)
    is_in_it = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stand_still(connection: Connection) -> None:
        connection.execute(insert(schema.writes).values(key="late", written_at=0.0))
        loop.call_soon_threadsafe(is_in_it.set)
        time.sleep(3.5)

    writing = asyncio.create_task(stalled.write_repeatable(stand_still))
    await is_in_it.wait()
    assert isinstance(await two.take(), Won)
    assert not writing.done()
    with pytest.raises(Unavailable):
        await writing
    count = select(func.count()).select_from(schema.writes).where(schema.writes.c.key == "late")
    assert await stalled.read(lambda c: c.execute(count).scalar_one()) == 0
    await stalled.close()


async def test_what_is_asked_while_postgres_restarts_is_answered_when_it_is_back(
    postgres: PostgresServer,
) -> None:
    store = Store(Database(postgres.engine_url, patience_s=120.0))
    await store.add_deployment(SPEC, {"web": "img"}, {}, 1.0)
    postgres.stop()
    asked = [
        asyncio.create_task(store.add_deployment(SPEC, {"web": "img"}, {}, 2.0)),
        asyncio.create_task(store.deployments()),
    ]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in asked)
    await asyncio.to_thread(postgres.start)
    await asyncio.gather(*asked)
    assert [deployment.version for deployment in await store.deployments()] == [2, 1]
    await store.close()


async def test_a_postgres_that_stays_away_is_a_typed_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as refused:
        Database(f"postgresql+psycopg://postgres:very-secret@/postgres?host={tmp_path}")
    assert refused.value.remedy
    assert "very-secret" not in str(refused.value.to_dict())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:secret@h/db", "password"),
        ("postgresql://u@h/db?password=secret", "password"),
        ("mysql://u@h/db", "postgresql://"),
        ("sqlite:////var/lib/other.db", "postgresql://"),
        ("h:5432", "postgresql://"),
        ("postgresql://[h", "postgresql://"),
    ],
)
def test_what_may_not_stand_in_a_command_line_is_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        check_shown_url(url)
    assert "secret" not in str(refused.value)


def test_a_url_without_a_password_may_stand_in_a_command_line() -> None:
    assert check_shown_url("postgresql://u@h:5432/db?sslmode=verify-full")
