"""The agent with a runtime that fails where the real one rarely does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.node.live_agent import example_request

from glowplug.image.node_images import open_images
from glowplug.node.agent import Agent
from glowplug.node.api import make_app
from glowplug.node.gpus import Gpus
from glowplug.node.runtimes import Runtimes
from glowplug.observe.metrics import Metrics
from glowplug.runtime.port import Sandbox
from glowplug.snapshot import SnapshotStore
from glowplug.types.clock import ManualClock
from glowplug.types.errors import RuntimeFailed, Unavailable
from glowplug.types.identity import RuntimeIdentity
from glowplug.types.paths import StateDir
from glowplug.types.replica import Purpose, ReplicaState, SnapshotStatus, SnapshotView, StartReplica

pytestmark = pytest.mark.sandbox


class FailingRuntime:
    """Creates nothing, and cannot delete while :attr:`delete_fails`."""

    def __init__(self) -> None:
        self.delete_fails = False
        self.deleted: list[str] = []

    def identity(self) -> RuntimeIdentity:
        return RuntimeIdentity("failing", "1")

    def create(self, sandbox: Sandbox) -> int:
        raise RuntimeFailed("it does not want to")

    def start(self, sandbox: Sandbox) -> None:
        raise AssertionError

    restore: Callable[..., int] = create
    checkpoint: Callable[..., None] = start
    signal: Callable[..., None] = start

    def delete(self, sandbox_id: str, *, force: bool = True) -> None:
        if self.delete_fails:
            raise RuntimeFailed("it does not go")
        self.deleted.append(sandbox_id)

    def exec_argv(self, *_args: Any, **_named: Any) -> list[str]:
        raise AssertionError

    def end_commands(self) -> None:
        pass


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    state = StateDir(tmp_path)
    images, metrics, clock = open_images(state), Metrics(), ManualClock()
    agent = Agent(
        state=state,
        runtimes=Runtimes({"failing": FailingRuntime()}),
        images=images.mounter,
        snapshots=SnapshotStore(state, images.files),
        metrics=metrics,
        clock=clock,
        gpus=Gpus(metrics.registry, clock),
    )
    await agent.open()
    yield agent
    await agent.close(stop_replicas=True)
    images.close()


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def _captured(agent: Agent) -> SnapshotView:
    await _eventually(lambda: agent.captures.views()[0].status is not SnapshotStatus.CAPTURING)
    [view] = agent.captures.views()
    return view


async def test_a_replica_ends_and_frees_its_room_even_if_its_sandbox_does_not_go(agent: Agent) -> None:
    runtime = agent.runtimes.named("failing")
    assert isinstance(runtime, FailingRuntime)
    runtime.delete_fails = True
    request = example_request()
    agent.start(request)
    await _eventually(lambda: agent.table.get(request.replica_id).state is ReplicaState.FAILED)
    assert agent.capacity.memory_used_bytes == 0
    assert agent.leftovers.ids == {request.replica_id}
    folder = agent.state.replicas / request.replica_id
    assert folder.exists(), "as long as something is left, so is the folder"

    runtime.delete_fails = False
    await agent.leftovers.retry()
    assert agent.leftovers.ids == frozenset()
    assert runtime.deleted == [request.replica_id]
    assert not folder.exists()


async def test_a_bug_in_a_capture_is_a_failed_capture_and_no_more(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug(*_args: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(agent.starter, "start_cold", bug)
    agent.capture(example_request())
    view = await _captured(agent)
    assert "capture failed: a bug of ours" in (view.reason or "")
    assert agent.capacity.memory_used_bytes == 0
    assert list(agent.state.replicas.iterdir()) == []
    assert all(one.purpose is Purpose.CAPTURE and one.state.is_final for one in agent.table.list())


async def test_a_capture_that_cannot_even_begin_does_not_harm_who_wants_it(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(_request: StartReplica) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(agent.starter, "key", bug)
    await agent.captures.wanted(example_request())


async def test_after_a_failure_the_next_capture_waits_longer_each_time(agent: Agent) -> None:
    clock = agent.clock
    assert isinstance(clock, ManualClock)
    for failures_so_far, pause_s in enumerate((5.0, 10.0, 20.0)):
        await agent.captures.wanted(example_request())
        view = await _captured(agent)
        assert view.failures == failures_so_far + 1
        assert f"next try in {pause_s:g} s" in (view.reason or "")
        clock.advance(pause_s - 1)
        await agent.captures.wanted(example_request())
        assert agent.captures.views()[0].status == "quarantined", "too early"
        clock.advance(2)


async def test_a_capture_that_ends_while_snapshots_are_listed_is_in_the_list(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = SnapshotView(id="sn-1", app="a", server="s", status=SnapshotStatus.CAPTURING, key="k")
    under_way = [view]
    is_the_request = ContextVar("is_the_request", default=False)  # the agent's own tasks list snapshots too

    def read_before_it_was_published() -> list[SnapshotView]:
        if is_the_request.get():
            under_way.clear()
        return []

    monkeypatch.setattr(agent.captures, "views", under_way.copy)
    monkeypatch.setattr(agent.snapshots, "list", read_before_it_was_published)
    unused: Any = None
    transport = httpx.ASGITransport(make_app(agent, unused, unused))
    is_the_request.set(True)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        assert [one["id"] for one in (await client.get("/v1/snapshots")).json()] == [view.id]


async def test_an_agent_that_leaves_begins_no_capture(agent: Agent) -> None:
    await agent.captures.close()
    await agent.captures.wanted(example_request())
    assert agent.captures.views() == []
    with pytest.raises(Unavailable):
        agent.capture(example_request())
