"""What replicas did: counted, saved, given back, and never counted twice."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.control.conftest import Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.control import usage as usage_module
from glowplug.control.replica_entry import Replica
from glowplug.control.usage import UsageRecorder, use_of
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir
from glowplug.types.replica import ReplicaState, ReplicaView
from glowplug.types.spec import ServerSpec
from glowplug.types.usage import UsageSpan, Use

SPEC = ServerSpec.model_validate(server_spec(resources={"gpu": "L4:2"}))


def replica(state: ReplicaState, requests: int = 0) -> Replica:
    view = ReplicaView.model_validate(
        {
            "id": "r", "app": "shop", "server": "web", "deployment_id": "shop-v1", "state": state,
            "created_at": 0.0,
        }
    )  # fmt: skip
    made = Replica(view, "node")
    made.in_flight = {object() for _ in range(requests)}  # type: ignore[misc]
    return made


class Target:
    """One server with the replicas that a test gives it."""

    def __init__(self, *replicas: Replica) -> None:
        self.app, self.server = "shop", "web"
        self.version: Any = type("Version", (), {"spec": SPEC})
        self.replicas = dict(enumerate(replicas))


class Fleet:
    def __init__(self, *replicas: Replica) -> None:
        self.target = Target(*replicas)

    def targets(self) -> list[Target]:
        return [self.target]


class Spans:
    """A store that may fail."""

    def __init__(self) -> None:
        self.found: list[UsageSpan] = []
        self.batches: list[str] = []
        self.fails = False

    async def add_usage(self, batch: str, spans: list[UsageSpan]) -> None:
        self.batches.append(batch)
        if self.fails:
            raise GlowplugError("the disk is full")
        self.found += spans


def recorder(*replicas: Replica) -> tuple[UsageRecorder, Spans, ManualClock, CollectorRegistry]:
    clock, spans, registry = ManualClock(1_700_000_100.0), Spans(), CollectorRegistry()
    fleet: Any = Fleet(*replicas)
    return UsageRecorder(fleet, spans, clock, registry), spans, clock, registry


@pytest.mark.parametrize(
    ("state", "requests", "use"),
    [
        (ReplicaState.STARTING, 0, Use.STARTING),
        (ReplicaState.READY, 0, Use.IDLE),
        (ReplicaState.READY, 2, Use.SERVING),
        (ReplicaState.DRAINING, 1, Use.SERVING),
        (ReplicaState.PARKED, 0, Use.PARKED),
        (ReplicaState.STOPPED, 0, None),
        (ReplicaState.FAILED, 0, None),
    ],
)
def test_what_a_replica_does(state: ReplicaState, requests: int, use: Use | None) -> None:
    assert use_of(replica(state, requests)) is use


async def test_time_is_counted_as_what_replicas_do_when_looked_at() -> None:
    usage, spans, clock, registry = recorder(
        replica(ReplicaState.READY, 1), replica(ReplicaState.READY), replica(ReplicaState.PARKED)
    )
    for _ in range(4):
        clock.advance(0.5)
        usage.look()
    await usage.save()
    (span,) = spans.found
    assert (span.serving_s, span.idle_s, span.parked_s, span.starting_s) == (2.0, 2.0, 2.0, 0.0)
    assert (span.gpu, span.gpus, span.starts_at) == ("L4", 2, 1_700_000_100.0)
    labels = {"app": "shop", "server": "web"}
    assert registry.get_sample_value("glowplug_gpu_use_seconds_total", {**labels, "use": "serving"}) == 4.0
    assert registry.get_sample_value("glowplug_gpu_use_seconds_total", {**labels, "use": "parked"}) is None
    assert registry.get_sample_value("glowplug_replica_use_seconds_total", {**labels, "use": "parked"}) == 2.0


async def test_a_look_that_comes_very_late_invents_nothing() -> None:
    usage, spans, clock, _ = recorder(replica(ReplicaState.READY))
    clock.advance(3_600.0)
    usage.look()
    await usage.save()
    assert spans.found[0].idle_s == 5.0


async def test_spans_end_after_five_minutes() -> None:
    usage, spans, clock, _ = recorder(replica(ReplicaState.READY))
    for _ in range(400):
        clock.advance(1.0)
        usage.look()
    await usage.save()
    assert [span.starts_at for span in spans.found] == [1_700_000_100.0, 1_700_000_400.0]
    assert sum(span.idle_s for span in spans.found) == 400.0


async def test_what_cannot_be_saved_is_kept_and_counted() -> None:
    usage, spans, clock, registry = recorder(replica(ReplicaState.READY))
    clock.advance(1.0)
    usage.look()
    spans.fails = True
    await usage.save()
    assert registry.get_sample_value("glowplug_usage_not_saved_total") == 1
    spans.fails = False
    clock.advance(1.0)
    usage.look()
    await usage.save()
    await usage.save()
    assert [span.idle_s for span in spans.found] == [1.0, 1.0]
    # It may have been saved the first time, and only the answer lost: it is sent again under the same name.
    assert spans.batches[0] == spans.batches[1] != spans.batches[2]
    assert len(spans.batches) == 3


async def test_a_store_that_does_not_answer_keeps_nobody_from_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck(Spans):
        async def add_usage(self, batch: str, spans: list[UsageSpan]) -> None:
            await super().add_usage(batch, spans)
            await asyncio.Event().wait()

    monkeypatch.setattr(usage_module, "_LOOK_S", 0.001)
    monkeypatch.setattr(usage_module, "_SAVE_S", 0.001)
    fleet: Any = Fleet(replica(ReplicaState.READY))
    store, registry = Stuck(), CollectorRegistry()
    usage = UsageRecorder(fleet, store, SystemClock(), registry)
    running = asyncio.create_task(usage.run())
    await eventually(lambda: store.batches, "it saves")

    def idle_s() -> float:
        labels = {"app": "shop", "server": "web", "use": "idle"}
        return registry.get_sample_value("glowplug_replica_use_seconds_total", labels) or 0.0

    before_s = idle_s()
    await eventually(lambda: idle_s() > before_s + 0.05, "it looks on")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(store.batches) == 1


async def test_a_control_plane_says_what_its_replicas_did_after_a_restart_too(
    state: StateDir, agent: FakeAgent
) -> None:
    async with running_control(state) as control:
        await control.deploy(app_spec(server_spec()))
        await control.get("/shop/web/")

        async def idle_s() -> float:
            spans = (await control.client.get("/api/v1/usage", params={"app": "shop"})).json()
            return math.fsum(span["idle_s"] for span in spans)

        before_s = await eventually(idle_s, "idle seconds")
        assert await control.metric("glowplug_replica_use_seconds_total") > 0
    async with running_control(state) as control:
        assert await idle_s_of(control) >= before_s
        other = await control.client.get("/api/v1/usage", params={"app": "other"})
        assert other.json() == []


async def idle_s_of(control: Control) -> float:
    spans = (await control.client.get("/api/v1/usage", params={"since_s": 600})).json()
    return math.fsum(span["idle_s"] for span in spans)
