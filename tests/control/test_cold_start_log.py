"""Records of cold starts, on a clock that moves when told to."""

from __future__ import annotations

import pytest

from glowplug.control.cold_start_log import ColdStartLog
from glowplug.observe.metrics import Metrics
from glowplug.types.clock import ManualClock
from glowplug.types.coldstart import ColdStartRecord
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
