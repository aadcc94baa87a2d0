"""Which leader an agent obeys: the newest, also across its own restart, whatever is half sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from glowplug.node.leader_fence import LeaderFence
from glowplug.types.errors import GlowplugError, NotLeader
from glowplug.types.leader import TERM_HEADER


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "leader-term.json"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_smaller_terms_are_refused_and_counted(file: Path, registry: CollectorRegistry) -> None:
    fence = LeaderFence(file, registry)
    for term in (5, 5, 9):
        fence.check(term)
    with pytest.raises(NotLeader) as refused:
        fence.check(8)
    assert refused.value.details["term"] == 9
    assert registry.get_sample_value("glowplug_orders_refused_total") == 1
    assert registry.get_sample_value("glowplug_leader_term") == 9


def test_a_restarted_agent_remembers(file: Path) -> None:
    LeaderFence(file, CollectorRegistry()).check(9)
    with pytest.raises(NotLeader):
        LeaderFence(file, CollectorRegistry()).check(8)


@pytest.mark.parametrize(
    "content", [b"", b"{}x", b'{"format": 2}', b'{"format": 1, "term": -1}', b"\xff" * 9999]
)
def test_a_damaged_file_costs_the_memory_and_nothing_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    fence = LeaderFence(file, CollectorRegistry())
    fence.check(3)
    with pytest.raises(NotLeader):
        LeaderFence(file, CollectorRegistry()).check(2)


def test_a_term_that_cannot_be_written_down_holds_all_the_same(
    tmp_path: Path, registry: CollectorRegistry
) -> None:
    fence = LeaderFence(tmp_path / "missing" / "term.json", registry)
    fence.check(9)
    with pytest.raises(NotLeader):
        fence.check(8)
    assert registry.get_sample_value("glowplug_leader_term_unsaved_total") == 1


@pytest.fixture
async def agent(file: Path, registry: CollectorRegistry) -> AsyncIterator[httpx.AsyncClient]:
    """An API behind a fence, whose orders are listed."""
    app = FastAPI(dependencies=[Depends(LeaderFence(file, registry).check_call)])
    orders: list[Any] = []

    @app.exception_handler(GlowplugError)
    async def failed(_request: Request, error: GlowplugError) -> JSONResponse:
        return JSONResponse(error.to_dict(), status_code=error.http_status)

    @app.post("/orders")
    async def order(body: dict[str, Any]) -> None:
        orders.append(body)

    @app.get("/orders")
    async def listed() -> list[Any]:
        return orders

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        yield client


async def test_an_order_half_sent_when_the_next_leader_looks_has_no_effect(agent: httpx.AsyncClient) -> None:
    is_half_sent, is_to_end = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"start": '
        is_half_sent.set()
        await is_to_end.wait()
        yield b'"a replica"}'

    headers = {TERM_HEADER: "7", "content-type": "application/json"}
    old = asyncio.create_task(agent.post("/orders", content=body(), headers=headers))
    await is_half_sent.wait()
    assert (await agent.get("/orders", headers={TERM_HEADER: "8"})).json() == []
    is_to_end.set()
    refused = await old
    assert (refused.status_code, refused.json()["code"]) == (503, "not_leader")
    assert (await agent.get("/orders")).json() == []


@pytest.mark.parametrize(
    "given", ["", "-1", "1.5", "1e3", "7_0", "\u0667", "9" * 17, str(2**53 + 1), "x" * 5000]
)
async def test_what_is_no_term_is_refused(
    agent: httpx.AsyncClient, registry: CollectorRegistry, given: str
) -> None:
    answer = await agent.get("/orders", headers={TERM_HEADER.encode(): given.encode()})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    assert registry.get_sample_value("glowplug_leader_term") == 0


async def test_calls_by_hand_bear_no_term(agent: httpx.AsyncClient) -> None:
    await agent.get("/orders", headers={TERM_HEADER: "8"})
    assert (await agent.post("/orders", json={})).status_code == 200
