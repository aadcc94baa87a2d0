"""Kubernetes for the contract of engines: control plane in this process, two machines, any API server.

What Kubernetes itself does with machines is done here: the controller of DaemonSets puts an agent's pod on
each node that is not released, and a kubelet runs what is in it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.control.conftest import state_directory
from tests.control.second_node import SecondNode
from tests.engine.contract import LONG_S, Site
from tests.engine.kubernetes.conftest import NAMESPACE, condition, eventually
from tests.engine.loop_thread import LoopThread
from tests.engine.small_site import SmallCluster

from glowplug.cli.client import ApiClient
from glowplug.engine.kubernetes.access import Access
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.engine import KubernetesEngine
from glowplug.engine.kubernetes.names import (
    AGENT,
    API_VERSION,
    COMPONENT_LABEL,
    DRAINED_ANNOTATION,
    ENGINE_LABEL,
    NODES,
    PODS,
    POOLS,
    RELEASED_LABEL,
)
from glowplug.engine.kubernetes.node_keeper import NodeKeeper
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.engine.kubernetes.rounds import Job, Rounds
from glowplug.engine.port import Engine, Machine
from glowplug.types.clock import SystemClock

POOL = {"pool": "contract"}
_HAS = {"cpu": "4", "memory": "8Gi"}


class Kubelets:
    """Of all machines, and the controller of DaemonSets. ``api`` may do everything."""

    def __init__(self, api: ObjectApi, cluster: SmallCluster, machines: Sequence[SecondNode]) -> None:
        self._api = api
        self._cluster = cluster
        self._machines = {machine.name: machine for machine in machines}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._runs: dict[str, str] = {}
        """Which pod's agent runs on a machine, by the machine."""

    def add_nodes(self) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it is"}
        for name in self._machines:
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": dict(POOL)}}
            self._api.create(NODES, node)
            status = {"status": {"capacity": _HAS, "allocatable": _HAS, "conditions": [ready]}}
            self._api.patch(NODES, name, status, subresource="status")

    def pods_on(self, name: str) -> list[Object]:
        pods = self._api.list(PODS, NAMESPACE, labels=f"{COMPONENT_LABEL}={AGENT}")
        return [pod for pod in pods if pod["spec"]["nodeName"] == name]

    def look(self) -> None:
        nodes = {node["metadata"]["name"]: node for node in self._api.list(NODES)}
        for name in self._machines:
            is_released = RELEASED_LABEL in (nodes[name]["metadata"].get("labels") or {})
            with self._lock:
                self._follow(name, [pod["metadata"]["name"] for pod in self.pods_on(name)], is_released)

    def kill(self, name: str) -> None:
        """The agent's container; the kubelet starts it again."""
        with self._lock:
            (pod,) = self.pods_on(name)
            self._end(name)
            self._say(pod["metadata"]["name"], is_ready=False)

    def put_back(self) -> None:
        """Nothing is cordoned, drained or released."""
        metadata = {"labels": {RELEASED_LABEL: None}}
        for name in self._machines:
            self._api.patch(NODES, name, {"metadata": metadata, "spec": {"unschedulable": None}})
        eventually(lambda: not any(map(_is_drained, self._api.list(NODES))), "none is drained", LONG_S)

    def _follow(self, name: str, pods: list[str], is_released: bool) -> None:
        if is_released:
            for pod in pods:
                self._api.delete(PODS, pod, NAMESPACE)
        elif not pods:
            pods = [f"gp-agent-{next(self._numbers)}"]
            self._api.create(PODS, _pod(pods[0], name), NAMESPACE)
        if self._runs.get(name) not in pods:
            self._end(name)
        if pods and not is_released and name not in self._runs:
            self._cluster.join(self._machines[name], labels={ENGINE_LABEL: "kubernetes"})
            self._runs[name] = pods[0]
            self._say(pods[0], is_ready=True)

    def _end(self, name: str) -> None:
        self._cluster.unplug(self._machines[name])
        self._runs.pop(name, None)

    def _say(self, pod: str, *, is_ready: bool) -> None:
        ready = {"type": "Ready", "status": str(is_ready)}
        self._api.patch(PODS, pod, {"status": {"conditions": [ready]}}, NAMESPACE, subresource="status")


class OnKubernetes(Site):
    """``api`` is what the operator may do, ``admin`` may do everything."""

    is_control_on_a_machine = False

    def __init__(self, cluster: SmallCluster, control: ApiClient, kubelets: Kubelets, api: ObjectApi) -> None:
        self.cluster = cluster
        self.kubelets = kubelets
        self._control = control
        self.engine: Engine = KubernetesEngine(api, NAMESPACE, control, SystemClock(), image="glowplug:1")

    def agents_of(self, machine: Machine) -> int:
        return sum(condition(pod).get("status") == "True" for pod in self.kubelets.pods_on(machine.id))

    def kill_agent(self, machine: Machine) -> None:
        self.kubelets.kill(machine.id)

    @contextmanager
    def away(self) -> Iterator[Engine]:
        with KubernetesApi(Access(server="http://127.0.0.1:1")) as nobody:
            yield KubernetesEngine(nobody, NAMESPACE, self._control, SystemClock(), image="glowplug:1")

    def run_replica(self) -> str:
        return self.cluster.run_replica()

    def nodes_of_replicas(self) -> list[str]:
        return self.cluster.nodes_of_replicas()

    def node_names(self) -> set[str]:
        return set(self.cluster.states())

    def heal(self) -> None:
        """All is as in the beginning."""
        self.kubelets.put_back()
        self.cluster.undo()


@contextmanager
def kubernetes_site(api: ObjectApi, admin: ObjectApi) -> Iterator[OnKubernetes]:
    """The chart's DaemonSet is there; the rest is made."""
    with ExitStack() as owned:
        states = [owned.enter_context(state_directory()) for _ in range(3)]
        cluster = SmallCluster(owned.enter_context(LoopThread()), states[0], has_agent=False)
        owned.callback(cluster.close)
        machines = [
            cluster.add(state, name) for state, name in zip(states[1:], ("beta", "gamma"), strict=True)
        ]
        kubelets = Kubelets(admin, cluster, machines)
        kubelets.add_nodes()
        admin.create(POOLS, _pool(), NAMESPACE)
        control = owned.enter_context(ApiClient(cluster.control.url, None))
        keeper = NodeKeeper(api, NAMESPACE, control)
        jobs = [Job("kubelets", 0.1, kubelets.look), Job("nodes", 0.2, keeper.look)]
        rounds = Rounds(jobs, SystemClock(), OperatorCounters())
        rounds.start()
        owned.callback(rounds.stop)
        yield OnKubernetes(cluster, control, kubelets, api)
        assert rounds.bug is None


def _pool() -> Object:
    machine = {"cpus": 4, "memoryBytes": 8 << 30}
    spec = {"nodeSelector": POOL, "machine": machine, "maxMachines": 4}
    return {"apiVersion": API_VERSION, "kind": "Pool", "metadata": {"name": "contract"}, "spec": spec}


def _pod(name: str, node: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {COMPONENT_LABEL: AGENT}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "agent", "image": "glowplug:1"}],
        },
    }


def _is_drained(node: dict[str, Any]) -> bool:
    return DRAINED_ANNOTATION in (node["metadata"].get("annotations") or {})
