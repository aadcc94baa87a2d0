"""The engine ``kubernetes`` on a real kube-apiserver, with the chart's rights: the contract, and asking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.contract import EngineContract
from tests.engine.kubernetes.conftest import NAMESPACE, condition
from tests.engine.kubernetes.kubernetes_site import OnKubernetes, kubernetes_site
from tests.engine.kubernetes.real_cluster import OPERATOR, RealCluster, applied, real_cluster
from tests.engine.kubernetes.test_chart import NEEDED, render

from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import API_VERSION, COMPONENT_LABEL, PODS, POOLS
from glowplug.engine.port import Demand, MachineState
from glowplug.types.errors import InvalidInput, ResourceExhausted

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
GPUS = {"pool": "h100"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with real_cluster() as made:
        applied(made, [one for one in render(NEEDED) if one["kind"] not in ("Job", "Deployment")])
        yield made


@pytest.fixture(scope="module")
def admin(cluster: RealCluster) -> Iterator[KubernetesApi]:
    with KubernetesApi(cluster.access()) as made:
        yield made


@pytest.fixture(scope="module")
def made(cluster: RealCluster, admin: KubernetesApi) -> Iterator[OnKubernetes]:
    with KubernetesApi(cluster.access(OPERATOR)) as api, kubernetes_site(api, admin) as site:
        yield site


@pytest.fixture
def site(made: OnKubernetes) -> Iterator[OnKubernetes]:
    yield made
    made.heal()


def pool(admin: KubernetesApi, **fields: Any) -> dict[str, Any]:
    machine = {"cpus": 16, "memoryBytes": 64 << 30, "gpus": 8, "gpuChip": "H100"}
    spec = {"nodeSelector": GPUS, "machine": machine, "maxMachines": 3, **fields}
    body = {"apiVersion": API_VERSION, "kind": "Pool", "metadata": {"name": "h100"}, "spec": spec}
    return admin.create(POOLS, body, NAMESPACE)


@pytest.fixture
def gpus(admin: KubernetesApi) -> Iterator[None]:
    pool(admin)
    yield
    admin.delete(POOLS, "h100", NAMESPACE)


def claims(admin: KubernetesApi) -> dict[str, Any]:
    pods = admin.list(PODS, NAMESPACE, labels=f"{COMPONENT_LABEL}=claim")
    return {pod["metadata"]["name"]: pod for pod in pods}


def status(admin: KubernetesApi) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(POOLS, "h100", NAMESPACE)["status"]
    return found


class TestKubernetesEngine(EngineContract):
    """All of the contract, and what only a real API server can show."""

    @pytest.mark.usefixtures("gpus")
    def test_what_is_asked_for_are_pods_that_wait_for_a_machine(
        self, site: OnKubernetes, cluster: RealCluster, admin: KubernetesApi
    ) -> None:
        site.engine.ask([Demand(count=3, cpus=2, memory_bytes=8 << 30, gpus=4, gpu_chip="H100")])
        assert set(claims(admin)) == {"glowplug-claim-h100-0", "glowplug-claim-h100-1"}
        for pod in claims(admin).values():
            assert pod["status"]["phase"] == "Pending"
            assert pod["spec"]["priority"] == 0, "autoscalers add nothing for what is below their cutoff"
            assert pod["spec"]["nodeSelector"] == GPUS
            (container,) = pod["spec"]["containers"]
            assert container["resources"]["requests"]["nvidia.com/gpu"] == "8"
        assert (status(admin)["wanted"], status(admin)["running"], status(admin)["pending"]) == (2, 0, 2)
        head, line = cluster.kubectl("get", "pools.glowplug.dev", "h100", "-n", NAMESPACE).splitlines()
        assert dict(zip(head.split(), line.split(), strict=True)).items() >= {
            "NAME": "h100", "WANTED": "2", "RUNNING": "0",
        }.items()  # fmt: skip

        place(cluster, "glowplug-claim-h100-1", "beta")
        site.engine.reconcile()
        assert (status(admin)["running"], status(admin)["pending"]) == (1, 1)
        waiting = [one for one in site.engine.machines() if one.id.startswith("claim/")]
        assert [(one.id, one.state) for one in waiting] == [
            ("claim/glowplug-claim-h100-0", MachineState.PENDING)
        ]

        site.engine.ask([Demand(count=1, gpus=8)])
        assert set(claims(admin)) == {"glowplug-claim-h100-1"}, "the one without a machine is taken back"
        site.engine.ask([])
        assert claims(admin) == {}
        site.engine.reconcile()
        assert (status(admin)["wanted"], status(admin)["running"], status(admin)["pending"]) == (0, 0, 0)

    @pytest.mark.usefixtures("gpus")
    def test_more_than_a_pool_may_have_is_limited_and_what_none_has_refused(
        self, site: OnKubernetes, admin: KubernetesApi
    ) -> None:
        site.engine.ask([Demand(count=5, gpus=8)])
        assert len(claims(admin)) == 3
        assert condition(admin.get(POOLS, "h100", NAMESPACE))["reason"] == "Limited"
        with pytest.raises(ResourceExhausted):
            site.engine.ask([Demand(count=1, gpus=9)])
        assert len(claims(admin)) == 3, "nothing has changed"
        site.engine.ask([])

    def test_malformed_pools_are_refused_by_the_schema_or_in_their_status(
        self, site: OnKubernetes, admin: KubernetesApi
    ) -> None:
        for fields in (
            {"nodeSelector": {}}, {"maxMachines": -1}, {"maxMachines": "many"}, {"minMachines": 10_001},
            {"machine": {"cpus": 0, "memoryBytes": 1 << 30}}, {"machine": {"cpus": 1}}, {"machine": None},
        ):  # fmt: skip
            with pytest.raises(InvalidInput):
                pool(admin, **fields)
        pool(admin, minMachines=4)
        try:
            site.engine.reconcile()
            said = condition(admin.get(POOLS, "h100", NAMESPACE))
            assert (said["status"], said["reason"]) == ("False", "InvalidInput")
            assert "minMachines is more than maxMachines" in said["message"]
            assert claims(admin) == {}
        finally:
            admin.delete(POOLS, "h100", NAMESPACE)


def place(cluster: RealCluster, claim: str, node: str) -> None:
    """As the scheduler does."""
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": claim},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{claim}/binding"
    cluster.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(binding))
