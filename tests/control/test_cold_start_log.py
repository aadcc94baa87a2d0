"""Closed records are saved beside the serving; whoever asks for them does not notice."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from glowplug.control.cold_start_log import ColdStartLog
from glowplug.observe.metrics import Metrics
from glowplug.types.clock import ManualClock
from glowplug.types.coldstart import ColdStartRecord


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
