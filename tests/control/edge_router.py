"""The router of a second machine, in the test's event loop or as a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from tests.control.conftest import Control, eventually
from tests.control.control_process import Process, control_process
from tests.control.second_node import OWN, SecondNode, nodes

from glowplug.control.edge.run import serve_router
from glowplug.control.http_server import open_listener
from glowplug.identity.membership import read_membership


@dataclass
class Edge:
    """A running router, and a client of it."""

    url: str
    client: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def metric(self, name: str) -> float:
        """The sum of one metric's samples."""
        text = (await self.client.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith(name) and not line.startswith("#")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def knows(self, replicas: int) -> None:
        """Wait until its table holds so many that requests may go to."""

        async def is_so() -> bool:
            return await self.metric("glowplug_router_replicas{") == replicas

        await eventually(is_so, f"{replicas} replicas in the table")


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Edge]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120.0, limits=limits, trust_env=False) as client:
        yield Edge(url, client)


@asynccontextmanager
async def running_edge(control: Control, node: SecondNode) -> AsyncIterator[Edge]:
    """The router of that machine, which has joined, as long as the context lasts; control follows it."""
    record = read_membership(node.state.identity)
    assert record is not None
    listener = open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    servers: list[uvicorn.Server] = []
    serving = asyncio.create_task(serve_router(node.state, record, listener, on_server=servers.append))
    await eventually(lambda: serving.done() or (servers and servers[0].started), "router started")
    assert not serving.done(), serving.exception()
    async with client_of(f"http://127.0.0.1:{port}") as edge:
        await is_followed(control, node)
        yield edge
    servers[0].should_exit = True
    servers[0].force_exit = True
    await serving


def edge_process(node: SecondNode, *arguments: str) -> AbstractAsyncContextManager[Process]:
    """The same as a process."""
    return control_process(node.state, *(arguments or ("--port", "0")), module="glowplug.control.edge")


async def router_of(control: Control, node: SecondNode) -> dict[str, Any]:
    """What the control plane says of it."""
    found: dict[str, Any] = (await nodes(control))[node.name]["router"] or {}
    return found


async def is_followed(control: Control, node: SecondNode) -> None:
    async def is_so() -> bool:
        return (await router_of(control, node)).get("state") == "following"

    await eventually(is_so, f"the router of {node.name} is followed")


async def only_on(control: Control, *joining: SecondNode) -> None:
    """Let them join; new replicas go to them."""
    for node in joining:
        await node.join(control)
    assert (await control.client.post(f"/api/v1/nodes/{OWN}/drain")).status_code == 200
