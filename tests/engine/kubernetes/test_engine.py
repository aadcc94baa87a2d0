"""Kubernetes as an engine: what is a machine, what is asked for, what draining and releasing do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.kubernetes.conftest import NAMESPACE, condition
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import FakeControl, member

from glowplug.engine.kubernetes.engine import KubernetesEngine
from glowplug.engine.kubernetes.names import API_VERSION, DAEMON_SETS, NODES, PODS, POOLS, RELEASED_LABEL
from glowplug.engine.kubernetes.quantities import bytes_of, count_of
from glowplug.engine.port import Demand, Engine, MachineState
from glowplug.types.clock import ManualClock
from glowplug.types.errors import InvalidInput, NotFound, ResourceExhausted, Unavailable

GIB = 1 << 30


@pytest.fixture
def engine(api: FakeApi, control: FakeControl, clock: ManualClock) -> KubernetesEngine:
    labels = {"app.kubernetes.io/component": "agent"}
    api.put(DAEMON_SETS, {"metadata": {"name": "gp-agent", "labels": labels}}, NAMESPACE)
    return engine_on(api, control, clock)


def engine_on(api: FakeApi, control: FakeControl, clock: ManualClock) -> KubernetesEngine:
    return KubernetesEngine(api, NAMESPACE, control, clock, image="glowplug:1", pause=clock.advance)


def pool(api: FakeApi, name: str = "h100", *, gpus: int = 8, chip: str | None = "H100", **spec: Any) -> None:
    machine = {"cpus": 16, "memoryBytes": 64 * GIB, "gpus": gpus, "gpuChip": chip}
    fields = {"nodeSelector": {"pool": name}, "machine": machine, "maxMachines": 4, **spec}
    body = {"apiVersion": API_VERSION, "kind": "Pool", "metadata": {"name": name}, "spec": fields}
    api.put(POOLS, body, NAMESPACE)


def node(
    api: FakeApi, name: str = "n1", *, ready: str = "True", agent: str | None = "True", **labels: str
) -> None:
    status = {
        "conditions": [{"type": "Ready", "status": ready, "reason": "KubeletSilent"}],
        "allocatable": {"cpu": "15500m", "memory": "63Gi", "nvidia.com/gpu": "8"},
    }
    api.put(NODES, {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": status})
    if agent is not None:
        pod = {
            "metadata": {"name": f"agent-{name}", "labels": {"app.kubernetes.io/component": "agent"}},
            "spec": {"nodeName": name},
            "status": {
                "conditions": [{"type": "Ready", "status": agent}],
                "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            },
        }
        api.put(PODS, pod, NAMESPACE)


def claims(api: FakeApi) -> dict[str, Any]:
    labels = "app.kubernetes.io/component=claim"
    return {one["metadata"]["name"]: one for one in api.list(PODS, NAMESPACE, labels=labels)}


def place(api: FakeApi, claim: str, where: str) -> None:
    """As the scheduler does."""
    api.patch(PODS, claim, {"spec": {"nodeName": where}}, NAMESPACE)


def wanted(api: FakeApi, name: str = "h100") -> int:
    found: int = api.get(POOLS, name, NAMESPACE)["status"]["wanted"]
    return found


# -- machines ------------------------------------------------------------------------------------------------


def test_machines_are_the_nodes_with_an_agent(api: FakeApi, engine: KubernetesEngine) -> None:
    port: Engine = engine
    node(api, "gpu-1.example", **{"nvidia.com/gpu.product": "NVIDIA-H100", "zone": "a"})
    node(api, "other", agent=None)
    (machine,) = port.machines()
    assert (machine.id, machine.state, machine.why) == ("gpu-1.example", MachineState.RUNNING, "")
    assert machine.node.startswith("gpu-1-")
    assert (machine.cpus, machine.memory_bytes, machine.gpus) == (15.5, 63 * GIB, 8)
    assert (machine.gpu_chip, machine.labels["zone"]) == ("NVIDIA-H100", "a")


def test_what_state_a_machine_is_in_and_why(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api)
    node(api, "a-crashing", agent="False")
    node(api, "b-silent", ready="Unknown")
    node(api, "c-cordoned")
    node(api, "d-new", agent=None, pool="h100")
    engine.drain("c-cordoned")
    found = {machine.id: (machine.state, machine.why) for machine in engine.machines()}
    assert found["a-crashing"] == (MachineState.PENDING, "its agent: CrashLoopBackOff")
    assert found["b-silent"] == (MachineState.GONE, "its kubelet is silent: KubeletSilent")
    assert found["c-cordoned"][0] is MachineState.DRAINING
    assert found["d-new"] == (MachineState.PENDING, "the DaemonSet has put no agent there yet")


def test_reconcile_needs_the_chart(api: FakeApi, control: FakeControl, clock: ManualClock) -> None:
    with pytest.raises(NotFound, match="no DaemonSet"):
        engine_on(api, control, clock).reconcile()


def test_a_machine_that_kubernetes_does_not_know(engine: KubernetesEngine) -> None:
    for call in (engine.drain, engine.release):
        with pytest.raises(NotFound, match="no node 'nobody'"):
            call("nobody")


# -- asking --------------------------------------------------------------------------------------------------


def test_a_demand_becomes_claims_that_the_autoscaler_sees(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api)
    engine.ask([Demand(count=3, cpus=2, memory_bytes=8 * GIB, gpus=4, gpu_chip="h100")])
    assert set(claims(api)) == {"glowplug-claim-h100-0", "glowplug-claim-h100-1"}
    spec = claims(api)["glowplug-claim-h100-0"]["spec"]
    assert spec["nodeSelector"] == {"pool": "h100"}
    assert spec["containers"][0]["image"] == "glowplug:1"
    assert spec["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "8"
    status = api.get(POOLS, "h100", NAMESPACE)["status"]
    assert (status["wanted"], status["pending"]) == (2, 2)
    pending = [machine for machine in engine.machines() if machine.state is MachineState.PENDING]
    assert [machine.id for machine in pending] == [
        "claim/glowplug-claim-h100-0", "claim/glowplug-claim-h100-1",
    ]  # fmt: skip


def test_each_demand_takes_the_place_of_the_one_before(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api)
    engine.ask([Demand(count=3, gpus=8)])
    place(api, "glowplug-claim-h100-1", "n1")
    engine.ask([Demand(count=1, gpus=8)])
    assert set(claims(api)) == {"glowplug-claim-h100-1"}, "those without a machine are dropped first"
    engine.ask([])
    assert claims(api) == {}


def test_shares_go_to_the_smallest_machines_that_hold_them(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api)
    pool(api, "cpu", gpus=0, chip=None)
    engine.ask([Demand(count=2, cpus=16), Demand(count=1, gpus=1, gpu_chip="H100")])
    assert (wanted(api, "cpu"), wanted(api, "h100")) == (2, 1)


def test_more_than_a_pool_may_grow_is_limited_and_said(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api)
    engine.ask([Demand(count=6, gpus=8)])
    assert wanted(api) == 4
    assert condition(api.get(POOLS, "h100", NAMESPACE))["message"].startswith("2 shares")
    engine.reconcile()
    assert condition(api.get(POOLS, "h100", NAMESPACE))["reason"] == "Limited", "and it stays said"
    engine.ask([Demand(count=1, gpus=8)])
    assert condition(api.get(POOLS, "h100", NAMESPACE))["status"] == "True"


def test_what_no_machine_could_hold_is_refused_and_changes_nothing(
    api: FakeApi, engine: KubernetesEngine
) -> None:
    pool(api)
    with pytest.raises(ResourceExhausted, match="9 GPU"):
        engine.ask([Demand(count=1, gpus=1), Demand(count=1, gpus=9)])
    with pytest.raises(ResourceExhausted, match="A100"):
        engine.ask([Demand(count=1, gpus=1, gpu_chip="A100")])
    assert claims(api) == {}


def test_a_successor_goes_on_with_what_was_asked_for(
    api: FakeApi, engine: KubernetesEngine, control: FakeControl, clock: ManualClock
) -> None:
    pool(api)
    engine.ask([Demand(count=2, gpus=8)])
    api.delete(PODS, "glowplug-claim-h100-0", NAMESPACE)
    engine_on(api, control, clock).reconcile()
    assert len(claims(api)) == 2


def test_a_pool_keeps_its_minimum_without_being_asked(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api, minMachines=1)
    engine.reconcile()
    assert len(claims(api)) == 1
    writes = len(api.writes)
    engine.reconcile()
    assert len(api.writes) == writes, "nothing has changed: nothing is written"


# -- releasing -----------------------------------------------------------------------------------------------


def test_a_released_machine_has_no_agent_and_no_claim_and_is_not_asked_for_again(
    api: FakeApi, engine: KubernetesEngine, control: FakeControl
) -> None:
    pool(api)
    control.members = [member("n1"), member("n2")]
    engine.ask([Demand(count=2, gpus=8)])
    node(api, "n1", pool="h100")
    place(api, "glowplug-claim-h100-1", "n1")
    engine.release("n1")
    assert api.get(NODES, "n1")["metadata"]["labels"][RELEASED_LABEL] == "true"
    assert api.written("delete", PODS)[0] == "agent-n1"
    assert [one.name for one in control.members] == ["n2"]
    engine.reconcile()
    assert set(claims(api)) == {"glowplug-claim-h100-0"}
    assert wanted(api) == 1
    engine.release("claim/glowplug-claim-h100-0")
    engine.reconcile()
    assert claims(api) == {}


def test_an_agent_that_does_not_end_is_said_to_and_its_machine_stays_a_node(
    api: FakeApi, engine: KubernetesEngine, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    node(api, "n1")
    control.members = [member("n1")]
    deletes: list[str] = []
    ending = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}

    def delete(resource: str, name: str, namespace: str | None = None) -> None:
        deletes.append(name)
        api.patch(resource, name, ending, namespace)

    monkeypatch.setattr(api, "delete", delete)
    api.patch(PODS, "agent-n1", {"metadata": {"finalizers": ["its/kubelet"]}}, NAMESPACE)
    with pytest.raises(Unavailable, match="has not ended"):
        engine.release("n1")
    assert deletes == ["agent-n1"], "once is enough"
    assert [one.name for one in control.members] == ["n1"]
    (machine,) = engine.machines()
    assert (machine.state, machine.why) == (MachineState.PENDING, "its agent is ending")


# -- what cannot be meant ------------------------------------------------------------------------------------


def test_a_pool_that_cannot_be_meant_is_refused_in_its_status_and_changes_nothing(
    api: FakeApi, engine: KubernetesEngine, caplog: pytest.LogCaptureFixture
) -> None:
    pool(api)
    engine.ask([Demand(count=2, gpus=8)])
    there = set(claims(api))
    api.patch(POOLS, "h100", {"spec": {"minMachines": 5}}, NAMESPACE)
    engine.reconcile()
    said = condition(api.get(POOLS, "h100", NAMESPACE))
    assert (said["status"], said["reason"], said["observedGeneration"]) == ("False", "InvalidInput", 2)
    assert "minMachines is more than maxMachines" in said["message"]
    assert (set(claims(api)), wanted(api)) == (there, 2)
    writes = len(api.writes)
    engine.reconcile()
    assert len(api.writes) == writes, "it is said once"
    assert caplog.text.count("pool h100 is refused") == 1
    api.patch(POOLS, "h100", {"spec": {"minMachines": 3}}, NAMESPACE)
    engine.reconcile()
    assert condition(api.get(POOLS, "h100", NAMESPACE))["status"] == "True"
    assert len(claims(api)) == 3


def test_a_pool_whose_claims_are_refused_is_told_so_and_keeps_no_other_from_its_machines(
    api: FakeApi,
    engine: KubernetesEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    create = api.create

    def checked(resource: str, body: Any, namespace: str | None = None) -> Any:
        if "a b" in body["spec"].get("nodeSelector", {}):
            raise InvalidInput("spec.nodeSelector: Invalid value: a b", remedy="Correct the named fields.")
        return create(resource, body, namespace)

    monkeypatch.setattr(api, "create", checked)
    pool(api, "a-bad", nodeSelector={"a b": "1"}, minMachines=1)
    pool(api, minMachines=1)
    engine.reconcile()
    said = condition(api.get(POOLS, "a-bad", NAMESPACE))
    assert (said["status"], said["reason"]) == ("False", "InvalidInput")
    assert "spec.nodeSelector" in said["message"]
    assert set(claims(api)) == {"glowplug-claim-h100-0"}
    assert (wanted(api, "a-bad"), condition(api.get(POOLS, "h100", NAMESPACE))["status"]) == (1, "True")
    writes = len(api.writes)
    engine.reconcile()
    assert len(api.writes) == writes, "it is said once"
    assert caplog.text.count("pool a-bad: its claims are refused") == 1
    api.patch(POOLS, "a-bad", {"spec": {"nodeSelector": {"a b": None, "a": "1"}}}, NAMESPACE)
    engine.reconcile()
    assert condition(api.get(POOLS, "a-bad", NAMESPACE))["status"] == "True"
    assert len(claims(api)) == 2


def test_a_status_that_somebody_broke_is_written_anew(api: FakeApi, engine: KubernetesEngine) -> None:
    pool(api)
    api.patch(POOLS, "h100", {"status": {"wanted": "many"}}, NAMESPACE, subresource="status")
    engine.ask([Demand(count=1, gpus=8)])
    assert wanted(api) == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("500m", 0.5),
        ("16", 16.0),
        ("1e3", 1000.0),
        ("1.5Gi", 1.5 * GIB),
        ("12k", 12_000.0),
        (None, 0.0),
        ("x", 0.0),
    ],
)
def test_quantities(text: str | None, count: float) -> None:
    assert count_of(text) == count
    assert bytes_of(text) == int(count)
