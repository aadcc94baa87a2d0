"""A burst on four machines, one of which is warm: who is asked for how many, while none tells anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.second_node import second_node

from glowplug.types.replica import HeldSnapshot, NodeHoldings
from glowplug.types.spec import DirectoryImage

GIB = 1 << 30
CALLERS = 40
IMAGE_ID = f"img-{DirectoryImage(path='/').digest()[:8]}"
SNAPSHOT = HeldSnapshot(
    id="sn-1", servers=["shop/web"], image_id=IMAGE_ID, machine="m1", bytes=100, here_bytes=100,
    is_in_region=True,
)  # fmt: skip
SERVER = server_spec(
    scaling={"max_replicas": CALLERS, "target_concurrency": 1}, resources={"memory_bytes": 2 * GIB}
)


@pytest.fixture
async def machines(control: Control, agent: FakeAgent) -> AsyncIterator[list[FakeAgent]]:
    """The control plane's own and three others, whose starts wait. The last has the snapshot."""
    async with AsyncExitStack() as held:
        others = [await held.enter_async_context(second_node(name)) for name in ("beta", "gamma", "delta")]
        agents = [agent, *(node.agent for node in others)]
        for one in agents:
            one.gate.clear()
            one.holdings = NodeHoldings(machine="m1", snapshots=[SNAPSHOT] if one is agents[-1] else [])
        for node in others:
            await node.join(control)
        yield agents


async def told(machines: list[FakeAgent], *, cpus: float, memory_bytes: int) -> None:
    """They say what they have, and go on saying that nothing of it is taken."""
    for machine in machines:
        machine.node_fields = {"cpus": cpus, "memory_bytes": memory_bytes}
    looks = [machine.looks for machine in machines]
    await eventually(
        lambda: all(machine.looks > before + 1 for machine, before in zip(machines, looks, strict=True)),
        "what they have is known",
    )


async def ordered(control: Control, machines: list[FakeAgent], count: int) -> list[int]:
    """How many starts each machine was asked for, once all were; then every caller is answered."""
    callers = [asyncio.create_task(control.get("/shop/web/")) for _ in range(count)]
    try:
        await eventually(lambda: sum(len(one.orders) for one in machines) >= count, "all are asked for")
        return [len(machine.orders) for machine in machines]
    finally:
        for machine in machines:
            machine.gate.set()
        answers: list[httpx.Response] = await asyncio.gather(*callers)
        assert Counter(answer.status_code for answer in answers) == {200: count}


async def test_a_single_start_goes_where_the_snapshot_is(control: Control, machines: list[FakeAgent]) -> None:
    await told(machines, cpus=2, memory_bytes=512 * GIB)
    await control.deploy(app_spec(SERVER))
    assert await ordered(control, machines, 1) == [0, 0, 0, 1]


async def test_a_burst_goes_everywhere(control: Control, machines: list[FakeAgent]) -> None:
    await told(machines, cpus=2, memory_bytes=512 * GIB)
    await control.deploy(app_spec(SERVER))
    found = await ordered(control, machines, CALLERS)
    assert min(found) >= CALLERS // 4 - 2, found


async def test_a_burst_asks_no_machine_for_more_than_it_has_room_for(
    control: Control, machines: list[FakeAgent]
) -> None:
    """All is placed before a machine says that anything is taken: it would have to refuse otherwise."""
    await told(machines[:-1], cpus=2, memory_bytes=20 * GIB)
    await told(machines[-1:], cpus=64, memory_bytes=20 * GIB)  # warm, and idle: but for the room, the best
    await control.deploy(app_spec(SERVER))
    assert max(await ordered(control, machines, CALLERS // 2)) <= 10
