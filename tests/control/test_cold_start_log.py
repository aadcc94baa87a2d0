"""Records of cold starts: what they say, and that whoever asks for them finds what is just being saved."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from glowplug.control import cold_start_log
from glowplug.control.cold_start_log import ColdStartLog
from glowplug.observe.metrics import Metrics
from glowplug.types.clock import ManualClock
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import Unavailable
from glowplug.types.replica import ReplicaState, ReplicaView, Stage


class Records:
    """Simulated: a store that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[ColdStartRecord] = []

    async def add_cold_start(self, record: ColdStartRecord) -> None:
        self.kept.append(record)


async def test_the_stages_of_a_record_are_all_of_what_the_caller_waited() -> None:
    clock, records = ManualClock(), Records()
    log = ColdStartLog(records, clock, Metrics())
    opened = log.open("shop", "web", "shop-v1")
    clock.advance(0.5)
    opened.posted_at_s = clock.monotonic()
    clock.advance(2.0)
    opened.ready_at_s = clock.monotonic()
    clock.advance(0.25)
    view = ReplicaView(
        id="r1", app="shop", server="web", deployment_id="shop-v1", state=ReplicaState.READY, created_at=1.0,
        stages_s={Stage.ALLOCATE: 0.5, Stage.HOST_INIT: 1.5},
    )  # fmt: skip
    log.answered(opened, view)
    await log.flush()
    (record,) = records.kept
    assert record.total_s == pytest.approx(2.75)
    assert record.stages_s == pytest.approx(
        {Stage.ALLOCATE: 1.0, Stage.HOST_INIT: 1.5, Stage.FIRST_ANSWER: 0.25}
    )


class SlowStore:
    """Keeps nothing before it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.kept: list[ColdStartRecord] = []

    async def add_cold_start(self, record: ColdStartRecord) -> None:
        await self.go.wait()
        self.kept.append(record)


async def test_who_asks_waits_for_what_is_closed_and_being_saved() -> None:
    store = SlowStore()
    log = ColdStartLog(store, ManualClock(), Metrics())
    saving = asyncio.create_task(log.run())
    await asyncio.wait_for(log.saved(), 60)
    for _ in range(2):
        log.abandoned(log.open("shop", "web", "shop-v1"))
    asked = asyncio.create_task(log.saved())
    await asyncio.sleep(0.05)
    assert not asked.done()
    store.go.set()
    await asyncio.wait_for(asked, 60)
    assert len(store.kept) == 2
    saving.cancel()
    with suppress(asyncio.CancelledError):
        await saving


class AwayStore:
    """Does not answer at first; the last answer before it does gets lost."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.kept: dict[str, ColdStartRecord] = {}
        self.is_lost = asyncio.Event()

    async def add_cold_start(self, record: ColdStartRecord) -> None:
        self.failures -= 1
        if self.failures <= 0:
            self.kept[record.id] = record
            self.is_lost.set()
        if self.failures >= 0:
            raise Unavailable("Simulated: no database.")


async def test_records_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start_log, "_RETRY_S", 0.001)
    store, metrics = AwayStore(5), Metrics()
    log = ColdStartLog(store, ManualClock(), metrics)
    saving = asyncio.create_task(log.run())
    for _ in range(3):
        log.abandoned(log.open("shop", "web", "shop-v1"))
    await asyncio.wait_for(log.saved(), 60)
    assert len(store.kept) == 3
    assert metrics.registry.get_sample_value("glowplug_cold_starts_delayed_total") == 5
    assert metrics.registry.get_sample_value("glowplug_cold_starts_lost_total") == 0
    saving.cancel()
    with suppress(asyncio.CancelledError):
        await saving


async def test_a_record_that_was_being_saved_at_the_end_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start_log, "_RETRY_S", 600.0)
    store, metrics = AwayStore(1), Metrics()
    log = ColdStartLog(store, ManualClock(), metrics)
    saving = asyncio.create_task(log.run())
    for _ in range(2):
        log.abandoned(log.open("shop", "web", "shop-v1"))
    await asyncio.wait_for(store.is_lost.wait(), 60)
    saving.cancel()
    with suppress(asyncio.CancelledError):
        await saving
    store.kept.clear()
    await log.flush()
    assert len(store.kept) == 2
    assert metrics.registry.get_sample_value("glowplug_cold_starts_lost_total") == 0


async def test_what_cannot_be_saved_at_the_end_is_counted() -> None:
    metrics = Metrics()
    log = ColdStartLog(AwayStore(100), ManualClock(), metrics)
    for _ in range(2):
        log.abandoned(log.open("shop", "web", "shop-v1"))
    await log.flush()
    assert metrics.registry.get_sample_value("glowplug_cold_starts_lost_total") == 2
