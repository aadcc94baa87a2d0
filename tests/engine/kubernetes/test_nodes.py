"""Cordoned machines are drained, removed ones are removed; tokens to join with are always there."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from tests.engine.kubernetes.conftest import NAMESPACE
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import FakeControl, member

from glowplug.engine.kubernetes.handover import Handover
from glowplug.engine.kubernetes.join_secret import RENEW_BEFORE_S, TTL_S, JoinSecret
from glowplug.engine.kubernetes.names import DRAINED_ANNOTATION, NODES, PODS, SECRETS, node_name
from glowplug.engine.kubernetes.node_keeper import NodeKeeper
from glowplug.identity.roles import check_node_name
from glowplug.identity.tokens import JoinToken
from glowplug.types.clock import ManualClock
from glowplug.types.cluster import NodeState
from glowplug.types.errors import NotFound


@pytest.fixture
def keeper(api: FakeApi, control: FakeControl) -> NodeKeeper:
    return NodeKeeper(api, NAMESPACE, control)


def machine(api: FakeApi, name: str = "n1", *, has_agent: bool = True, **spec: Any) -> None:
    api.put(NODES, {"metadata": {"name": name}, "spec": spec})
    if has_agent:
        labels = {"app.kubernetes.io/component": "agent"}
        pod = {"metadata": {"name": f"agent-{name}", "labels": labels}, "spec": {"nodeName": name}}
        api.put(PODS, pod, NAMESPACE)


def cordon(api: FakeApi, name: str = "n1", *, undo: bool = False) -> None:
    api.patch(NODES, name, {"spec": {"unschedulable": None if undo else True}})


def is_noted(api: FakeApi, name: str = "n1") -> bool:
    return DRAINED_ANNOTATION in (api.get(NODES, name)["metadata"].get("annotations") or {})


# -- draining ------------------------------------------------------------------------------------------------


def test_a_cordoned_machine_is_drained_and_used_again_afterwards(
    api: FakeApi, control: FakeControl, keeper: NodeKeeper
) -> None:
    machine(api)
    control.members = [member()]
    keeper.look()
    assert control.drains == []
    cordon(api)
    for _ in range(2):
        keeper.look()
    assert control.drains == [("n1", False)]
    assert is_noted(api)
    cordon(api, undo=True)
    for _ in range(2):
        keeper.look()
    assert control.drains == [("n1", False), ("n1", True)]
    assert not is_noted(api)


@pytest.mark.parametrize("taint", ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted"])
def test_a_machine_that_an_autoscaler_takes_away_is_drained(
    api: FakeApi, control: FakeControl, keeper: NodeKeeper, taint: str
) -> None:
    machine(api, taints=[{"key": taint, "effect": "NoSchedule"}])
    control.members = [member()]
    keeper.look()
    assert control.drains == [("n1", False)]


def test_what_a_person_has_drained_is_not_undone(
    api: FakeApi, control: FakeControl, keeper: NodeKeeper
) -> None:
    machine(api)
    control.members = [member(state=NodeState.DRAINING)]
    keeper.look()
    cordon(api)
    keeper.look()
    cordon(api, undo=True)
    keeper.look()
    assert control.drains == []


def test_an_operator_killed_between_note_and_drain_is_followed_by_one_that_drains(
    api: FakeApi, control: FakeControl, keeper: NodeKeeper
) -> None:
    machine(api)
    cordon(api)
    api.patch(NODES, "n1", {"metadata": {"annotations": {DRAINED_ANNOTATION: "true"}}})
    control.members = [member()]
    keeper.look()
    assert control.drains == [("n1", False)]


def test_machines_without_an_agent_and_nodes_of_another_engine_are_left_alone(
    api: FakeApi, control: FakeControl, keeper: NodeKeeper
) -> None:
    machine(api, has_agent=False, unschedulable=True)
    machine(api, "n2", unschedulable=True)
    control.members = [member(), member("n2", labels={}), member("n3", NodeState.LOST, labels={})]
    keeper.look()
    assert control.drains == []
    assert len(control.members) == 3


# -- going ---------------------------------------------------------------------------------------------------


def test_a_lost_node_whose_machine_is_gone_is_removed(
    api: FakeApi, control: FakeControl, keeper: NodeKeeper
) -> None:
    machine(api)
    control.members = [member(state=NodeState.LOST), member("n2", NodeState.LOST), member("n3")]
    keeper.look()
    assert [one.name for one in control.members] == ["n1", "n3"], "one is rebooted, one is only not listed"


@pytest.mark.parametrize(
    "name", ["n1", "ip-10-0-0-1.eu-west-1.compute.internal", "A.b", "x" * 253, "gke-pool-1-abcdef-0"]
)
def test_nodes_of_kubernetes_have_names_of_ours(name: str) -> None:
    ours = node_name(name)
    assert check_node_name(ours) == ours
    assert ours == name or ours != node_name(f"{name}.other")


# -- joining -------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(api: FakeApi, control: FakeControl, clock: ManualClock) -> JoinSecret:
    api.put(SECRETS, {"metadata": {"name": "join"}}, NAMESPACE)
    control.now_s = clock.wall()
    return JoinSecret(api, NAMESPACE, "join", control, clock)


def token(api: FakeApi) -> str:
    return base64.b64decode(api.get(SECRETS, "join", NAMESPACE)["data"]["token"]).decode()


def test_the_secret_is_filled_and_renewed_in_time(
    api: FakeApi, control: FakeControl, secret: JoinSecret, clock: ManualClock
) -> None:
    for _ in range(3):
        secret.renew()
    assert len(control.tokens) == 1
    first = token(api)
    assert JoinToken.parse(first).id == control.tokens[0].id
    clock.advance(TTL_S - RENEW_BEFORE_S + 1.0)
    secret.renew()
    assert len(control.tokens) == 2
    assert token(api) != first


def test_a_token_that_the_control_plane_does_not_know_is_replaced(
    api: FakeApi, control: FakeControl, secret: JoinSecret
) -> None:
    secret.renew()
    control.tokens.clear()  # revoked, or another database
    api.patch(SECRETS, "join", {"data": {"token": "!"}}, NAMESPACE)
    secret.renew()
    assert JoinToken.parse(token(api)).id == control.tokens[0].id


def test_a_chart_without_its_secret_is_an_error(
    api: FakeApi, control: FakeControl, clock: ManualClock
) -> None:
    with pytest.raises(NotFound):
        JoinSecret(api, NAMESPACE, "join", control, clock).renew()


# -- new versions of the control plane -----------------------------------------------------------------------


def control_pod(
    api: FakeApi, name: str, template: str, made: int, *, ready: bool, started: bool = True
) -> None:
    labels = {"app.kubernetes.io/component": "control", "pod-template-hash": template}
    metadata = {"name": name, "labels": labels, "creationTimestamp": f"2026-01-01T00:00:0{made}Z"}
    status = {"containerStatuses": [{"ready": ready, "started": started}]}
    api.put(PODS, {"metadata": metadata, "status": status}, NAMESPACE)


def test_an_old_leader_makes_way_once_a_new_control_plane_stands_by(api: FakeApi) -> None:
    handover = Handover(api, NAMESPACE)
    handover.look()
    control_pod(api, "old-1", "v1", 1, ready=True)
    control_pod(api, "old-2", "v1", 2, ready=False)
    handover.look()
    control_pod(api, "new-1", "v2", 3, ready=False, started=False)
    handover.look()
    assert api.written("delete", PODS) == []
    control_pod(api, "new-1", "v2", 3, ready=False, started=True)
    handover.look()
    assert api.written("delete", PODS) == ["old-1"]
    control_pod(api, "new-1", "v2", 3, ready=True)
    handover.look()
    assert api.written("delete", PODS) == ["old-1"], "what stands by is the Deployment's business"
