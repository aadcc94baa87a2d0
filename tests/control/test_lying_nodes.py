"""A node that was taken over and says what it likes: the control plane goes on, and believes what can be."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tests.control.conftest import QUICK, Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.second_node import OWN, RecordingAgent, SecondNode, nodes

from glowplug.control.answers import error_answer
from glowplug.node.answers import NoAnswer, error_from, lines_of, parse
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir
from glowplug.types.replica import ErrorInfo, NodeHoldings, NodeView, ReplicaEvent, ReplicaView

TRUTH = {
    "name": "beta", "agent_pid": 1, "version": "0", "cpus": 2, "cpus_used": 0, "memory_bytes": 1 << 40,
    "memory_used_bytes": 0, "runtime": "fake", "gpus": [], "gpus_used": 0,
}  # fmt: skip
SNAPSHOT = {"id": "sn-1", "servers": ["shop/web"], "bytes": 1, "here_bytes": 1}


class LyingAgent(RecordingAgent):
    """Answers some paths with other bytes than an agent would."""

    def __init__(self, state: StateDir) -> None:
        super().__init__(state)
        self.lies: dict[str, bytes] = {}
        self.told = 0

    def _app(self) -> Any:
        honest = super()._app()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            lie = self.lies.get(scope.get("path", ""))
            if lie is None:
                await honest(scope, receive, send)
                return
            self.told += 1
            await Response(lie, media_type="application/json")(scope, receive, send)

        return answer


@pytest.fixture
async def control(state: StateDir, agent: FakeAgent) -> AsyncIterator[Control]:
    """One that looks at its nodes all the time."""
    async with running_control(state, replace(QUICK, node_look_s=0.02)) as running:
        yield running


@pytest.fixture
async def liar() -> AsyncIterator[SecondNode]:
    root = Path(tempfile.mkdtemp(prefix="gp-"))
    node_state = StateDir(root)
    node_state.create()
    node = SecondNode(node_state, "beta")
    node.agent = LyingAgent(node_state)
    await node.open()
    try:
        yield node
    finally:
        await node.close()
        shutil.rmtree(root)


def lies_about_itself() -> list[bytes]:
    changes: list[dict[str, Any]] = [
        {"memory_bytes": -1}, {"memory_bytes": 10**400}, {"memory_bytes": "lots"}, {"cpus": float("nan")},
        {"memory_used_bytes": -(10**30)}, {"cpus": float("inf")}, {"cpus": -1}, {"gpus": ["H100"] * 5000},
        {"gpus": [7]}, {"gpus_used": -5}, {"name": "x" * 10_000}, {"version": "a\nERROR all is lost"},
    ]  # fmt: skip
    whole = [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000]
    return whole + [json.dumps({**TRUTH, **change}).encode() for change in changes]


def lies_about_holdings() -> list[bytes]:
    snapshots: list[list[dict[str, Any]]] = [
        [{**SNAPSHOT, "here_bytes": 10**400}], [{**SNAPSHOT, "bytes": -1}], [SNAPSHOT] * 257,
        [{**SNAPSHOT, "servers": ["a\nb"]}], [{**SNAPSHOT, "id": "x" * 100_000}],
    ]  # fmt: skip
    images = [{f"im-{n}": 1 for n in range(257)}, {"im-1": 10**400}]
    told = [{"snapshots": held} for held in snapshots] + [{"images": held} for held in images]
    return [json.dumps(one).encode() for one in told]


@pytest.mark.parametrize("lie", lies_about_itself())
def test_what_no_machine_can_be_is_an_error_of_ours(lie: bytes) -> None:
    with pytest.raises(NoAnswer) as caught:
        parse(NodeView.model_validate_json, lie)
    assert len(json.dumps(caught.value.to_dict())) < 2000


@pytest.mark.parametrize("lie", lies_about_holdings())
def test_what_no_machine_can_hold_is_an_error_of_ours(lie: bytes) -> None:
    with pytest.raises(NoAnswer) as caught:
        parse(NodeHoldings.model_validate_json, lie)
    assert len(json.dumps(caught.value.to_dict())) < 2000


async def test_a_node_that_lies_about_its_room_harms_nobody_else(
    control: Control, agent: FakeAgent, liar: SecondNode, caplog: pytest.LogCaptureFixture
) -> None:
    await liar.join(control)
    await control.deploy(app_spec(server_spec(scaling={"max_replicas": 4})))
    caplog.set_level(logging.WARNING)
    lying = liar.agent
    assert isinstance(lying, LyingAgent)
    everything = [("/v1/node", lie) for lie in lies_about_itself()[:8]]
    everything += [("/v1/holdings", lie) for lie in lies_about_holdings()[:3]]
    for path, lie in everything:
        told = lying.told
        lying.lies = {path: lie}
        await eventually(lambda told=told: lying.told > told + 1, f"two looks at {path}")
        assert (await control.get("/shop/web/")).status_code == 200
        assert (await nodes(control)).keys() == {OWN, "beta"}
    assert "node beta does not say what it has" in caplog.text
    lying.lies = {}
    await liar.is_in_state(control, "ready")


async def test_a_node_cannot_take_over_what_runs_on_another(
    control: Control, agent: FakeAgent, liar: SecondNode, caplog: pytest.LogCaptureFixture
) -> None:
    await control.deploy(app_spec())
    assert (await control.get("/shop/web/")).status_code == 200
    (own,) = agent.ready
    await liar.join(control)
    liar.agent._put(own.model_copy(update={"endpoint": None}))
    await eventually(lambda: liar.agent.stops, "the second one is told to stop")
    assert liar.agent.stops[0][0] == own.id
    assert (await control.get("/shop/web/")).status_code == 200
    assert [view.id for view in agent.ready] == [own.id]
    assert agent.stops == []
    assert f"replica {own.id} runs on" in caplog.text


WORDS = "it said \u2028{\u2029 and \x85 and \x0b and \x1c and \U0001f525 and \\n"


async def test_a_servers_last_words_may_hold_any_character(control: Control, agent: FakeAgent) -> None:
    """A tenant decides what its log holds, and so what its node tells of its end."""
    agent.failures = [ErrorInfo(code="replica_failed", message=WORDS)] * 3
    await control.deploy(app_spec())
    answer = await control.get("/shop/web/")
    assert (answer.status_code, WORDS in answer.json()["message"]) == (502, True), answer.text
    status = (await control.get("/api/v1/status")).json()
    assert [node["is_reachable"] for node in status["nodes"]] == [True]


# -- what is read of an answer -------------------------------------------------------------------------------


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def test_lines_end_at_line_feeds_alone_however_they_arrive() -> None:
    text = "one\n\n\r\u2028two\x85\nthree".encode()
    for size in (1, 2, 3, 1000):
        cut = [text[at : at + size] for at in range(0, len(text), size)]
        assert [line async for line in lines_of(pieces(*cut))] == [
            b"one",
            "\r\u2028two\x85".encode(),
            b"three",
        ]


async def test_a_line_without_an_end_is_given_up() -> None:
    with pytest.raises(NoAnswer, match="a line of more than"):
        await anext(lines_of(pieces(*[b"x" * 100] * 100), limit_bytes=1000))


@pytest.mark.parametrize("change", [
    {"id": "../../etc"}, {"id": ""}, {"id": "x" * 101}, {"id": "a\nb"}, {"app": "x" * 1000},
    {"created_at": "NaN"}, {"revision": -1}, {"stages_s": {"mount": "Infinity"}}, {"restored_bytes": 10**40},
    {"image_bytes_by_tier": {f"t{n}": 1 for n in range(17)}}, {"gpus": ["x"] * 5000},
])  # fmt: skip
def test_a_replica_that_cannot_be_is_none(change: dict[str, Any]) -> None:
    view = {
        "id": "r1",
        "app": "shop",
        "server": "web",
        "deployment_id": "d",
        "state": "ready",
        "created_at": 0.0,
    }
    assert ReplicaView.model_validate(view)
    event = json.dumps({"type": "change", "replica": {**view, **change}})
    event = event.replace('"NaN"', "NaN").replace('"Infinity"', "Infinity")
    with pytest.raises(GlowplugError):
        parse(ReplicaEvent.model_validate_json, event.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [*TRUTH, *SNAPSHOT, "snapshots", "images", "type", "replica", "code", "message", "details"]
)


@settings(max_examples=50)
@given(
    st.binary(max_size=200)
    | st.dictionaries(FIELDS, JSON, max_size=6).map(lambda said: json.dumps(said).encode())
)
def test_whatever_an_agent_says_is_a_message_or_an_error_of_ours(said: bytes) -> None:
    for read in (NodeView, NodeHoldings, ReplicaEvent):
        with contextlib.suppress(NoAnswer):
            parse(read.model_validate_json, said)
    for status in (400, 404, 503):
        status_line, headers, body = error_answer(error_from(status, said))
        assert 400 <= status_line < 600
        assert not [value for _, value in headers if b"\n" in value]
        assert isinstance(json.loads(body)["message"], str)


def test_an_error_of_an_agent_cannot_write_headers() -> None:
    told = {"code": "overloaded", "message": "x", "details": {"retry_after_s": "1\r\nset-cookie: a=b"}}
    status, headers, body = error_answer(error_from(429, json.dumps(told).encode()))
    assert (status, [name for name, _ in headers]) == (429, [b"content-type", b"content-length"])
    assert json.loads(body)["code"] == "overloaded"
