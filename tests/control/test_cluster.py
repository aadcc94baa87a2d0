"""Two machines: joining, being placed there and answering from there, falling silent, draining, leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.control.conftest import QUICK, Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.second_node import OWN, SecondNode, new_token, nodes, second_node
from websockets.asyncio.client import connect

from glowplug.identity.membership import accept_renewal, renewal_request
from glowplug.identity.tokens import JoinToken
from glowplug.types.cluster import CertificateAnswer
from glowplug.types.errors import ResourceExhausted
from glowplug.types.paths import StateDir
from glowplug.types.replica import ErrorInfo

SERVER = server_spec(scaling={"max_replicas": 4})


@pytest.fixture
async def beta() -> AsyncIterator[SecondNode]:
    async with second_node() as node:
        yield node


async def _only_on(control: Control, node: SecondNode) -> None:
    """New replicas go to that node."""
    await node.join(control)
    assert (await control.client.post(f"/api/v1/nodes/{OWN}/drain")).status_code == 200


# -- joining -------------------------------------------------------------------------------------------------


async def test_a_machine_that_joins_is_a_node_with_what_it_said(control: Control, beta: SecondNode) -> None:
    await beta.join(control, labels={"zone": "east"})
    listed = await nodes(control)
    assert listed.keys() == {OWN, "beta"}
    assert listed["beta"]["labels"] == {"zone": "east"}
    assert listed["beta"]["address"] == f"127.0.0.1:{beta.cable.port}"
    assert (listed["beta"]["state"], listed["beta"]["why"]) == ("ready", "")
    status = (await control.get("/api/v1/status")).json()
    assert [node["name"] for node in status["nodes"]][1:] == ["beta"]
    assert await control.metric('glowplug_nodes{state="ready"}') == 2


async def test_who_may_not_join_changes_nothing(control: Control, beta: SecondNode) -> None:
    good, revoked = await new_token(control), await new_token(control)
    over = await new_token(control, ttl_s=0.001)
    await asyncio.sleep(0.01)
    gone = await control.client.delete(f"/api/v1/join-tokens/{JoinToken.parse(revoked).id}")
    assert gone.status_code == 204
    listed = (await control.get("/api/v1/join-tokens")).json()
    assert [(one["id"], one["token"]) for one in listed] == [(JoinToken.parse(good).id, None)]
    of_another_cluster = str(JoinToken.new("ab" * 32))
    for token in (revoked, over, of_another_cluster):
        answer = await beta.ask_to_join(control, token)
        assert (answer.status_code, "token" in answer.json()["message"]) == (401, True)
    assert list(await nodes(control)) == [OWN]
    assert await control.metric("glowplug_joins_refused_total") == 3


CHANGED_ON_THE_WAY: list[tuple[dict[str, Any], int]] = [
    ({"name": "gamma"}, 401), ({"host": "10.0.0.1"}, 401), ({"labels": {"zone": "west"}}, 401),
    ({"signing_request": "x"}, 401), ({"proof": ""}, 401), ({"proof": "\u00e9" * 64}, 401),
    ({"token_id": "0" * 12}, 401), ({"token_id": "../etc"}, 400), ({"port": 0}, 400),
    ({"signing_request": "x" * 5000}, 400), ({"labels": {str(n): "1" for n in range(17)}}, 400),
    ({"host": "a b"}, 400), ({"labels": {"zone": "x" * 70_000}}, 400),
]  # fmt: skip


async def test_a_request_that_was_changed_on_its_way_is_refused(control: Control, beta: SecondNode) -> None:
    token = await new_token(control)
    for change, status in CHANGED_ON_THE_WAY:
        answer = await beta.ask_to_join(control, token, change=change)
        assert answer.status_code == status, f"{list(change)}: {answer.text}"
    assert list(await nodes(control)) == [OWN]


async def test_another_version_or_a_name_that_is_taken_is_refused(control: Control, beta: SecondNode) -> None:
    token = await new_token(control)
    other = await beta.ask_to_join(control, token, version="9.9.0")
    assert (other.status_code, "9.9.0" in other.json()["message"]) == (409, True)
    assert (await beta.ask_to_join(control, token, name=OWN)).status_code in (400, 409)
    assert list(await nodes(control)) == [OWN]
    await beta.join(control)
    async with second_node("beta") as impostor:
        refused = await impostor.ask_to_join(control, token)
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert (await nodes(control))["beta"]["address"] == f"127.0.0.1:{beta.cable.port}"


async def test_the_same_machine_may_join_again(control: Control, beta: SecondNode) -> None:
    await beta.join(control)
    await control.client.post("/api/v1/nodes/beta/drain")
    assert (
        await beta.ask_to_join(control, await new_token(control), labels={"rack": "2"})
    ).status_code == 200
    await beta.is_in_state(control, "draining")
    assert (await nodes(control))["beta"]["labels"] == {"rack": "2"}


async def test_a_node_gets_its_next_certificate_by_its_key_alone(control: Control, beta: SecondNode) -> None:
    await beta.join(control)
    before = beta.state.identity.node_certificate.read_text()
    body = renewal_request(beta.state.identity, "beta").model_dump(mode="json")
    answer = await control.client.post("/api/v1/nodes/renew", json=body)
    accept_renewal(beta.state.identity, CertificateAnswer.model_validate_json(answer.content))
    assert beta.state.identity.node_certificate.read_text() != before
    async with second_node("gamma") as stranger:
        for name in ("beta", "gamma"):
            body = renewal_request(stranger.state.identity, name).model_dump(mode="json")
            assert (await control.client.post("/api/v1/nodes/renew", json=body)).status_code == 401


# -- answering from there ------------------------------------------------------------------------------------


async def test_a_replica_on_another_machine_answers_as_one_here_does(
    control: Control, agent: FakeAgent, beta: SecondNode
) -> None:
    await _only_on(control, beta)
    await control.deploy(app_spec(SERVER))
    assert (await control.get("/shop/web/")).text == beta.agent.ready[0].id
    assert not agent.orders
    (view,) = (await control.get("/api/v1/replicas")).json()
    assert view["node"] == "beta"

    upload = await control.client.post("/shop/web/upload", content=b"z" * 3_000_000)
    assert upload.json()["bytes"] == 3_000_000
    async with connect(f"ws{control.url[4:]}/shop/web/ws", proxy=None, open_timeout=60) as socket:
        await socket.send(b"\x00\x01" * 300_000)
        assert await socket.recv() == b"\x00\x01" * 300_000
    server = beta.agent.servers[view["id"]]
    async with control.client.stream("GET", "/shop/web/stream") as answer:
        pieces = answer.aiter_raw()
        for piece in (b"one", b"two"):
            server.steps.put_nowait(piece)
            assert await anext(pieces) == piece, "each piece comes as it is sent"
        server.steps.put_nowait(None)
    url = f"ws{control.url[4:]}/api/v1/replicas/{view['id']}/exec?command=ls"
    async with connect(url, proxy=None, open_timeout=60) as socket:
        assert await socket.recv() == b"\x01ls"
    assert (await control.get(f"/api/v1/replicas/{view['id']}/logs")).text.startswith("log of")


async def test_where_a_replica_was_placed_is_explained(control: Control, beta: SecondNode) -> None:
    await _only_on(control, beta)
    await control.deploy(app_spec(SERVER))
    replica_id = (await control.get("/shop/web/")).text
    placement = (await control.get(f"/api/v1/replicas/{replica_id}/placement")).json()
    assert placement["node"] == "beta"
    best, other = placement["scores"]
    assert (best["node"], other["node"], other["why_not"].split(":")[0]) == ("beta", OWN, "draining")
    assert sum(best["parts"].values()) == pytest.approx(best["total"])
    assert (await control.get("/api/v1/replicas/nobody/placement")).status_code == 404


async def test_a_node_that_refuses_is_passed_over(
    control: Control, agent: FakeAgent, beta: SecondNode
) -> None:
    await beta.join(control)
    agent.refusals = [ResourceExhausted("The disk is full.", remedy="Make room.")]
    agent.node_fields = {"gpus": []}
    beta.agent.node_fields = {"gpus": ["H100"]}  # kept for who needs one: it is asked second
    looks = agent.looks, beta.agent.looks
    await eventually(
        lambda: agent.looks > looks[0] + 1 and beta.agent.looks > looks[1] + 1, "what they have is known"
    )
    await control.deploy(app_spec(SERVER))
    replica_id = (await control.get("/shop/web/")).text
    assert [order.replica_id for order in beta.agent.orders] == [replica_id]
    placement = (await control.get(f"/api/v1/replicas/{replica_id}/placement")).json()
    assert placement["node"] == "beta"
    assert {score["node"]: score["refusal"] for score in placement["scores"]}[OWN] == "The disk is full."


async def test_the_image_is_made_ready_there_first_and_where_it_cannot_be_nothing_is_placed(
    control: Control, agent: FakeAgent, beta: SecondNode, caplog: pytest.LogCaptureFixture
) -> None:
    beta.agent.build_error = ErrorInfo(code="invalid_input", message="There is no /here on this machine.")
    await beta.join(control)
    await control.deploy(app_spec(SERVER))
    await eventually(
        lambda: "cannot be made ready there" in caplog.text,
        "it was tried in the background, and that is known",
    )
    assert (await control.get("/shop/web/")).text == agent.ready[0].id
    placement = (await control.get(f"/api/v1/replicas/{agent.ready[0].id}/placement")).json()
    why_not = {score["node"]: score["why_not"] for score in placement["scores"]}
    assert "no /here" in why_not["beta"]
    assert beta.agent.builds == 1
    assert not beta.agent.orders


# -- what fails ----------------------------------------------------------------------------------------------


async def test_an_agent_that_dies_takes_no_request_along(control: Control, beta: SecondNode) -> None:
    await _only_on(control, beta)
    await control.deploy(app_spec(SERVER))
    warm = (await control.get("/shop/web/")).text
    await beta.agent.close(keep_replicas=True)
    await beta.is_in_state(control, "unreachable")

    async def is_told_why() -> bool:
        return "agent does not answer" in (await nodes(control))["beta"]["why"]

    await eventually(is_told_why, "the machine is told from its agent")
    assert [(await control.get("/shop/web/")).text for _ in range(20)] == [warm] * 20
    await beta.agent.open()
    await beta.is_in_state(control, "ready")
    assert (await control.get("/shop/web/")).text == warm
    assert len(beta.agent.orders) == 1


async def test_what_was_on_a_machine_that_fell_silent_is_answered_elsewhere(
    state: StateDir, agent: FakeAgent, beta: SecondNode
) -> None:
    async with running_control(state, replace(QUICK, node_silent_s=1.5, node_lost_s=3.0)) as control:
        await _only_on(control, beta)
        await control.deploy(app_spec(SERVER))
        lost = (await control.get("/shop/web/")).text
        await control.client.post(f"/api/v1/nodes/{OWN}/undrain")
        under_way = asyncio.create_task(control.get("/shop/web/wait"))
        await eventually(lambda: beta.agent.servers[lost].waiting, "a request that is under way")
        beta.cable.whole.clear()
        await beta.is_in_state(control, "unreachable", "lost")
        held = asyncio.create_task(control.get("/shop/web/"))
        await beta.is_in_state(control, "lost")
        here = await eventually(lambda: agent.ready and agent.servers[agent.ready[0].id], "one here")
        here.release.set()
        assert (await held).text == here.name
        assert (await under_way).text == here.name, "a GET is asked again"
        beta.agent.servers[lost].release.set()
        beta.cable.whole.set()
        await beta.is_in_state(control, "ready")
        await eventually(lambda: lost in [stop[0] for stop in beta.agent.stops], "what came back is stopped")
        assert (await control.get("/shop/web/")).text == here.name


async def test_a_restarted_control_plane_follows_its_nodes_again(
    state: StateDir, agent: FakeAgent, beta: SecondNode
) -> None:
    async with running_control(state) as control:
        await _only_on(control, beta)
        await control.deploy(app_spec(SERVER))
        warm = (await control.get("/shop/web/")).text
    async with running_control(state) as control:
        assert (await control.get("/shop/web/")).text == warm
        assert (await nodes(control))[OWN]["state"] == "draining"
        await beta.is_in_state(control, "ready")
    assert (len(beta.agent.orders), len(agent.orders)) == (1, 0)


# -- draining and leaving ------------------------------------------------------------------------------------


async def test_draining_moves_what_runs_there_without_a_gap(
    control: Control, agent: FakeAgent, beta: SecondNode
) -> None:
    await _only_on(control, beta)
    await control.deploy(app_spec(server_spec(scaling={"min_replicas": 1, "max_replicas": 2})))
    there = (await control.get("/shop/web/")).text
    refused = await control.client.delete("/api/v1/nodes/beta")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    agent.gate.clear()
    await control.client.post(f"/api/v1/nodes/{OWN}/undrain")
    await control.client.post("/api/v1/nodes/beta/drain")
    await eventually(lambda: agent.orders, "a successor is started")
    assert (await control.get("/shop/web/")).text == there, "it serves until there is another"
    agent.gate.set()
    await eventually(lambda: there in [stop[0] for stop in beta.agent.stops], "it is stopped then")
    assert (await control.get("/shop/web/")).text == agent.ready[0].id

    async def is_empty() -> bool:
        return (await nodes(control))["beta"]["replicas"] == 0

    await eventually(is_empty, "nothing is left there")
    assert (await control.client.delete("/api/v1/nodes/beta")).status_code == 204
    assert list(await nodes(control)) == [OWN]
    body = renewal_request(beta.state.identity, "beta").model_dump(mode="json")
    assert (await control.client.post("/api/v1/nodes/renew", json=body)).status_code == 401


async def test_a_node_can_be_given_up_and_the_own_one_cannot(control: Control, beta: SecondNode) -> None:
    await _only_on(control, beta)
    await control.deploy(app_spec(SERVER))
    await control.get("/shop/web/")
    assert (await control.client.delete("/api/v1/nodes/beta", params={"force": True})).status_code == 204
    assert (await control.client.delete(f"/api/v1/nodes/{OWN}")).status_code == 400
    for call in (
        control.client.post("/api/v1/nodes/beta/drain"),
        control.client.delete("/api/v1/nodes/beta"),
    ):
        assert (await call).status_code == 404
