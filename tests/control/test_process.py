"""The control plane as a process: its port, its signals, its memory, kill -9."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from tests.control.conftest import app_spec, eventually, server_spec
from tests.control.control_process import control_process
from tests.control.fake_agent import FakeAgent

from glowplug.types.paths import StateDir

UPLOAD_BYTES = 300 << 20


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client that waits as long as the tests' longest request."""
    async with httpx.AsyncClient(timeout=120.0, trust_env=False) as made:
        yield made


async def _deploy(client: httpx.AsyncClient, url: str, **fields: object) -> None:
    answer = await client.post(f"{url}/api/v1/deployments", json={"app": app_spec(server_spec(**fields))})
    assert answer.status_code == 200
    assert '"error":null}' in answer.text.splitlines()[-1]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_large_upload_streams_in_bounded_memory(
    state: StateDir, agent: FakeAgent, client: httpx.AsyncClient, is_chunked: bool
) -> None:
    piece = os.urandom(1 << 20)
    digest = hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(UPLOAD_BYTES // len(piece)):
            digest.update(piece)
            yield piece

    async with control_process(state, "--port", "0") as control:
        await _deploy(client, control.url)
        assert (await client.get(f"{control.url}/shop/web/")).status_code == 200
        before = control.memory_bytes()
        peak = [0]
        sampling = asyncio.create_task(_sample(control.memory_bytes, peak))
        headers = {} if is_chunked else {"content-length": str(UPLOAD_BYTES)}
        answer = await client.post(f"{control.url}/shop/web/upload", content=pieces(), headers=headers)
        sampling.cancel()
    assert answer.json() == {"bytes": UPLOAD_BYTES, "sha256": digest.hexdigest()}
    assert peak[0] - before < 32 << 20


async def _sample(read: Callable[[], int], peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], read())
        await asyncio.sleep(0.02)


async def test_sigterm_finishes_what_is_in_flight_and_exits_cleanly(
    state: StateDir, agent: FakeAgent, client: httpx.AsyncClient
) -> None:
    async with control_process(state, "--port", "0") as control:
        await _deploy(client, control.url)
        request = asyncio.create_task(client.get(f"{control.url}/shop/web/wait"))
        await eventually(lambda: agent.ready, "a replica")
        replica = agent.servers[agent.ready[0].id]
        await eventually(lambda: replica.waiting, "the request")
        control.process.send_signal(signal.SIGTERM)
        await eventually(lambda: not _accepts(control.port), "the port is closed")
        replica.release.set()
        assert (await request).status_code == 200
        assert await asyncio.wait_for(control.process.wait(), 60) == 0
    assert agent.ready  # replicas are the agent's: they stay
    assert "Traceback" not in "".join(control.stderr)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_kill_9_loses_no_warm_replica_and_an_inherited_port_refuses_nobody(
    state: StateDir, agent: FakeAgent, client: httpx.AsyncClient
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.set_inheritable(True)
        fd = listener.fileno()
        async with control_process(state, "--fd", str(fd), fds=(fd,)) as control:
            await _deploy(client, control.url)
            warm = (await client.get(f"{control.url}/shop/web/")).text
            control.process.kill()
        waiting = asyncio.create_task(
            httpx.AsyncClient(timeout=120, trust_env=False).get(f"{control.url}/shop/web/")
        )
        async with control_process(state, "--fd", str(fd), fds=(fd,)):
            assert (await waiting).text == warm
    assert len(agent.orders) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--fd", "0"), "no socket"), (("--port", "{taken}"), "Cannot listen"), (("--port", "99999"), "port")],
)
async def test_what_cannot_be_served_is_a_clear_error(
    state: StateDir, arguments: tuple[str, ...], words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [a.replace("{taken}", str(taken.getsockname()[1])) for a in arguments]
        async with control_process(state, *filled) as control:
            assert await asyncio.wait_for(control.process.wait(), 60) != 0
    assert words in "".join(control.stderr)
    assert "Traceback" not in "".join(control.stderr)


async def test_a_thousand_callers_fit_into_the_file_limit(state: StateDir) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        async with control_process(state, "--port", "0") as control:
            limits = control.limits()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert int(re.findall(r"Max open files\s+(\d+)", limits)[0]) == hard
