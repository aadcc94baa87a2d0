"""A control plane in this process, and machines that are real gateways with fake agents behind them."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.control.conftest import Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.second_node import OWN, SecondNode, nodes

from glowplug.types.paths import StateDir

from .loop_thread import LoopThread

ROOM = {"cpus": 4, "memory_bytes": 8 << 30}


class SmallCluster:
    """All of it lives in ``loop``'s thread; these methods block."""

    def __init__(self, loop: LoopThread, state: StateDir, *, has_agent: bool = True) -> None:
        self.loop = loop
        self._has_agent = has_agent
        self.control: Control = loop.run(self._open(state))

    async def _open(self, state: StateDir) -> Control:
        self._owned = AsyncExitStack()
        if self._has_agent:
            agent = FakeAgent(state.agent_socket)
            agent.node_fields = dict(ROOM)
            await agent.open()
            self._owned.push_async_callback(agent.close)
        return await self._owned.enter_async_context(running_control(state, has_agent=self._has_agent))

    def close(self) -> None:
        self.loop.run(self._owned.aclose())

    def add(self, state: StateDir, name: str) -> SecondNode:
        """A machine with a gateway and an agent, which has not joined."""

        async def add() -> SecondNode:
            node = SecondNode(state, name)
            node.agent.node_fields = dict(ROOM)
            await node.open()
            self._owned.push_async_callback(node.close)
            return node

        return self.loop.run(add())

    def join(self, node: SecondNode, **fields: object) -> None:
        """As ``cluster join`` by hand."""
        self.loop.run(node.join(self.control, **fields))

    def unplug(self, node: SecondNode) -> None:
        """Its gateway ends."""
        self.loop.run(node.unplug())

    def plug_in(self, node: SecondNode) -> None:
        """Its gateway is started."""

        async def plug_in() -> None:
            node.plug_in()

        self.loop.run(plug_in())

    def states(self) -> dict[str, str]:
        """The nodes and their states, but for the control plane's own."""

        async def states() -> dict[str, str]:
            listed = await nodes(self.control)
            return {name: node["state"] for name, node in listed.items() if name != OWN}

        return self.loop.run(states())

    def undo(self) -> None:
        """No app is deployed, and no machine is drained."""

        async def undo() -> None:
            await self.control.client.post("/api/v1/apps/shop/stop", params={"remove": "true"})
            for name in await nodes(self.control):
                await self.control.client.post(f"/api/v1/nodes/{name}/undrain")

        self.loop.run(undo())

    def run_replica(self) -> str:
        async def run() -> str:
            if self._has_agent:
                await self.control.client.post(f"/api/v1/nodes/{OWN}/drain")
            await self.control.deploy(app_spec(server_spec(scaling={"max_replicas": 4, "min_replicas": 1})))
            assert (await self.control.get("/shop/web/")).status_code == 200
            found: list[str] = await eventually(self._nodes_of_replicas, "a ready replica")
            return found[0]

        return self.loop.run(run())

    def nodes_of_replicas(self) -> list[str]:
        return self.loop.run(self._nodes_of_replicas())

    async def _nodes_of_replicas(self) -> list[str]:
        views = (await self.control.get("/api/v1/replicas")).json()
        return [view["node"] for view in views if view["state"] == "ready"]
