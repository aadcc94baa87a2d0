"""What survives in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.exc import IntegrityError
from tests.control.conftest import app_spec
from tests.postgres import PostgresServer

from glowplug.control import schema
from glowplug.control.database import Database
from glowplug.control.database_url import database_url
from glowplug.control.store import Store
from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.errors import Conflict, NotFound, SystemUnfit
from glowplug.types.replica import Stage, StartPath
from glowplug.types.spec import AppSpec
from glowplug.types.usage import UsageSpan

SPEC = AppSpec.model_validate(app_spec())
IMAGES = {"web": "img-1"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the database file is."""
    return tmp_path / "control.db"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, database: Path) -> str:
    """An empty database of each kind we promise to work with."""
    if request.param == "sqlite":
        return f"sqlite:///{database}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.engine_url


def open_store(url: str) -> Store:
    return Store(Database(url))


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An open store."""
    opened = open_store(url)
    yield opened
    await opened.close()


def record(number: int, **fields: object) -> ColdStartRecord:
    return ColdStartRecord.model_validate(
        {
            "id": f"r{number}", "app": "shop", "server": "web", "deployment_id": "shop-v1", "replica_id": "x",
            "node": "n", "path": StartPath.COLD, "outcome": Outcome.ANSWERED, "started_at": float(number),
            "total_s": 1.5, "stages_s": {Stage.MOUNT: 0.5}, **fields,
        }
    )  # fmt: skip


async def test_a_deployment_comes_back_as_it_was_stored(store: Store, url: str) -> None:
    made = await store.add_deployment(SPEC, IMAGES, {"k": "v"}, 12.5)
    again = open_store(url)
    assert await again.deployments() == [made]
    assert await again.secrets(made.id) == {"k": "v"}
    assert (made.id, made.spec_digest) == ("shop-v1", SPEC.digest())
    await again.close()


async def test_many_deployments_of_one_app_at_once_are_versions_or_conflicts_and_one_is_active(
    url: str,
) -> None:
    stores = [open_store(url) for _ in range(4)]
    calls = [s.add_deployment(SPEC, IMAGES, {}, float(n)) for n in range(5) for s in stores]
    results = await asyncio.gather(*calls, return_exceptions=True)
    made = [result for result in results if not isinstance(result, BaseException)]
    assert all(isinstance(result, Conflict) for result in results if isinstance(result, BaseException))
    listed = await stores[0].deployments("shop")
    assert sorted(d.version for d in listed) == list(range(1, len(made) + 1))
    assert sum(d.active for d in listed) == 1
    for opened in stores:
        await opened.close()


async def test_the_database_itself_refuses_a_second_active_version(store: Store, url: str) -> None:
    await store.add_deployment(SPEC, IMAGES, {}, 1.0)
    await store.add_deployment(SPEC, IMAGES, {}, 2.0)
    engine = create_engine(url)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(update(schema.deployments).values(active=True))
    engine.dispose()


async def test_activate_goes_back_and_forth(store: Store) -> None:
    for number in range(3):
        await store.add_deployment(SPEC, IMAGES, {}, float(number))
    assert (await store.activate("shop", None)).version == 2
    assert (await store.activate("shop", None)).version == 1
    with pytest.raises(NotFound):
        await store.activate("shop", None)
    assert (await store.activate("shop", 3)).active
    with pytest.raises(NotFound):
        await store.activate("shop", 9)
    assert [d.version for d in await store.active_deployments()] == [3]


async def test_deactivate_keeps_the_history(store: Store) -> None:
    await store.add_deployment(SPEC, IMAGES, {}, 1.0)
    await store.deactivate("shop")
    assert await store.active_deployments() == []
    assert len(await store.deployments()) == 1
    with pytest.raises(NotFound):
        await store.deactivate("shop")
    assert (await store.add_deployment(SPEC, IMAGES, {}, 2.0)).version == 2


async def test_cold_starts_are_filtered_and_newest_first(store: Store) -> None:
    for number in range(5):
        await store.add_cold_start(record(number, server="web" if number % 2 else "api"))
    await store.add_cold_start(record(4, server="api"))  # the answer to the first got lost
    found = await store.cold_starts(app="shop", server=None, since=1.0, limit=3)
    assert [r.id for r in found] == ["r4", "r3", "r2"]
    assert found[0] == record(4, server="api")
    assert [r.id for r in await store.cold_starts(app=None, server="web", since=None, limit=9)] == [
        "r3",
        "r1",
    ]
    assert await store.cold_starts(app="none", server=None, since=None, limit=9) == []


async def test_only_the_owner_can_read_the_file(database: Path) -> None:
    store = open_store(f"sqlite:///{database}")
    await store.add_deployment(SPEC, IMAGES, {"k": "v"}, 1.0)
    files = list(database.parent.glob("control.db*"))
    assert len(files) >= 2  # the write-ahead log too
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    await store.close()


async def test_a_newer_schema_is_refused_with_a_remedy(store: Store, url: str) -> None:
    await store.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(update(schema.schema_version).values(version=99))
    engine.dispose()
    with pytest.raises(SystemUnfit) as refused:
        open_store(url)
    assert "newer" in refused.value.message
    assert "Upgrade" in refused.value.remedy


def test_a_damaged_file_is_refused_with_a_remedy(database: Path) -> None:
    database.write_bytes(b"this is not a database, but it is long enough to look like one" * 100)
    with pytest.raises(SystemUnfit) as refused:
        open_store(f"sqlite:///{database}")
    assert refused.value.remedy


def test_the_database_can_be_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    monkeypatch.delenv("GLOWPLUG_DATABASE_URL", raising=False)
    assert database_url(database) == f"sqlite:///{database}"
    monkeypatch.setenv("GLOWPLUG_DATABASE_URL", "postgresql://u@h/db")
    assert database_url(database) == "postgresql+psycopg://u@h/db"


async def test_usage_of_one_span_adds_up_and_old_spans_are_left_out(store: Store) -> None:
    def span(starts_at: float, **seconds: float) -> UsageSpan:
        return UsageSpan(app="shop", server="web", gpu="L4", gpus=1, starts_at=starts_at, **seconds)

    await store.add_usage("one", [span(300.0, serving_s=1.0), span(600.0, idle_s=2.0)])
    for _ in range(2):  # the answer to the first got lost
        await store.add_usage("two", [span(300.0, serving_s=4.0, parked_s=1.0)])
    assert await store.usage(app=None, since=None) == [
        span(300.0, serving_s=5.0, parked_s=1.0), span(600.0, idle_s=2.0)
    ]  # fmt: skip
    # The first one ends at 600 s: it reaches beyond 599 s, and not beyond 600 s.
    assert len(await store.usage(app="shop", since=599.0)) == 2
    assert len(await store.usage(app="shop", since=600.0)) == 1
    assert await store.usage(app="other", since=None) == []


async def test_a_database_of_the_first_schema_gets_the_table_it_lacks(store: Store, url: str) -> None:
    await store.add_deployment(SPEC, IMAGES, {}, 1.0)
    engine = create_engine(url)
    with engine.begin() as connection:
        schema.usage.drop(connection)
        connection.execute(update(schema.schema_version).values(version=1))
    engine.dispose()
    opened = open_store(url)
    await opened.add_usage("one", [UsageSpan(app="shop", server="web", starts_at=0.0, idle_s=1.0)])
    assert len(await opened.deployments()) == 1
    assert len(await opened.usage(app=None, since=None)) == 1
    await opened.close()
    await open_store(url).close()
