"""One control plane, one agent, real sockets between them, all in the test's event loop."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tests.control.fake_agent import FakeAgent
from tests.postgres import PostgresServer

from glowplug.control.http_server import open_listener
from glowplug.control.own_node import OwnNode
from glowplug.control.server import serve
from glowplug.control.timings import Timings
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.paths import StateDir

QUICK = Timings(
    tick_s=0.02,
    suspect_refused_s=0.1,
    suspect_broken_s=0.05,
    backoff_first_s=0.15,
    backoff_max_s=0.6,
    hold_slack_s=5.0,
    stop_grace_s=10.0,
    relief_step_s=0.2,
    reconnect_first_s=0.02,
    reconnect_max_s=0.05,
    node_look_s=0.2,
)


async def eventually(is_met: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait until the condition holds; fails naming it after the deadline."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        found = is_met()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


def server_spec(name: str = "web", **fields: Any) -> dict[str, Any]:
    """A server of an app, as JSON."""
    scaling = {
        "scaledown_window_s": 30.0,
        "parked_window_s": 0,
        "max_replicas": 1,
        **fields.pop("scaling", {}),
    }
    return {
        "name": name,
        "image": {"kind": "directory", "path": "/"},
        "command": ["serve"],
        "scaling": scaling,
        **fields,
    }


def app_spec(*servers: dict[str, Any], name: str = "shop") -> dict[str, Any]:
    """An app, as JSON."""
    return {"name": name, "servers": list(servers) or [server_spec()]}


@dataclass
class Control:
    """A running control plane and a client of it."""

    url: str
    client: httpx.AsyncClient
    state: StateDir

    async def deploy(self, spec: dict[str, Any], secrets: dict[str, str] | None = None) -> dict[str, Any]:
        """Deploy; the last event."""
        answer = await self.client.post("/api/v1/deployments", json={"app": spec, "secrets": secrets or {}})
        assert answer.status_code == 200, answer.text
        last: dict[str, Any] = json.loads(answer.text.splitlines()[-1])
        return last

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def server(self, app: str = "shop", server: str = "web") -> dict[str, Any]:
        """The status of one server."""
        status = (await self.client.get("/api/v1/status")).json()
        apps = {a["name"]: {s["name"]: s for s in a["servers"]} for a in status["apps"]}
        found: dict[str, Any] = apps[app][server]
        return found

    async def held(self, count: int) -> None:
        """Wait until exactly so many requests are held."""

        async def is_so() -> bool:
            return bool((await self.server())["held"] == count)

        await eventually(is_so, f"{count} held requests")

    async def records(self) -> list[ColdStartRecord]:
        answer = await self.client.get("/api/v1/coldstarts")
        return [ColdStartRecord.model_validate(record) for record in answer.json()]

    async def metric(self, name: str) -> float:
        """The sum of one metric's samples."""
        text = (await self.client.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith(name) and not line.startswith("#")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@asynccontextmanager
async def running_control(
    state: StateDir, timings: Timings = QUICK, *, own: OwnNode | None = None, has_agent: bool = True
) -> AsyncIterator[Control]:
    """Serve a control plane on a free port for as long as the context lasts."""
    state.create()
    listener = open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    servers: list[uvicorn.Server] = []
    serving = asyncio.create_task(
        serve(state, listener, own=own, timings=timings, has_agent=has_agent, on_server=servers.append)
    )
    await eventually(lambda: serving.done() or (servers and servers[0].started), "control started")
    assert not serving.done(), serving.exception()
    url = f"http://127.0.0.1:{port}"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120.0, limits=limits, trust_env=False) as client:
        yield Control(url, client, state)
    servers[0].should_exit = True
    servers[0].force_exit = True
    assert await serving


@contextmanager
def state_directory() -> Iterator[StateDir]:
    """A state directory with a path short enough for a Unix socket."""
    root = Path(tempfile.mkdtemp(prefix="gp-"))
    made = StateDir(root)
    made.create()
    yield made
    shutil.rmtree(root)


@pytest.fixture
def state() -> Iterator[StateDir]:
    """A state directory of the test's own."""
    with state_directory() as made:
        yield made


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server, where the machine has one to run."""
    pytest.importorskip("psycopg", reason="PostgreSQL needs glowplug[postgres]")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> PostgresServer:
    """The same, empty."""
    postgres_server.empty()
    return postgres_server


@pytest.fixture
async def agent(state: StateDir) -> AsyncIterator[FakeAgent]:
    """A running agent."""
    fake = FakeAgent(state.agent_socket)
    await fake.open()
    yield fake
    await fake.close()


@pytest.fixture
async def control(state: StateDir, agent: FakeAgent) -> AsyncIterator[Control]:
    """A running control plane that follows the agent."""
    async with running_control(state) as running:
        yield running
