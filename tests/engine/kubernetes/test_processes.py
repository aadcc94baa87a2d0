"""Operator, control plane, agent and sandbox as real processes; only the API server is kmock's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.engine.kubernetes.conftest import NAMESPACE, condition, eventually
from tests.engine.kubernetes.installed import MACHINE, Installed, word
from tests.engine.kubernetes.mock_cluster import MockCluster
from tests.ports import free_ports

from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import APPS, DAEMON_SETS, NODES, REPLICAS, SECRETS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]
AGENT_LABELS = {"app.kubernetes.io/component": "agent"}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="gp-kube-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def kubeconfig(cluster: MockCluster, folder: Path) -> Path:
    file = folder / "kubeconfig"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        "clusters": [{"name": "c", "cluster": {"server": cluster.access.server}}],
        "users": [{"name": "u", "user": {}}],
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def api(cluster: MockCluster) -> Iterator[KubernetesApi]:
    with KubernetesApi(cluster.access) as made:
        made.create(DAEMON_SETS, {"metadata": {"name": "gp-agent", "labels": AGENT_LABELS}}, NAMESPACE)
        made.create(SECRETS, {"metadata": {"name": "gp-join"}}, NAMESPACE)
        yield made


def found(api: KubernetesApi) -> dict[str, Any]:
    return next(iter(api.list(APPS, NAMESPACE)), {})


def test_from_an_empty_cluster_to_an_answer_and_back(
    api: KubernetesApi, kubeconfig: Path, folder: Path
) -> None:
    health, metrics = free_ports(2)
    ports = ("--health-port", str(health), "--metrics-port", str(metrics))
    with ExitStack() as owned:
        installed = Installed(api, folder, owned)
        operator = installed.operator(owned, kubeconfig, *ports)
        pod = {"metadata": {"name": "gp-agent-0", "labels": AGENT_LABELS}, "spec": {"nodeName": MACHINE}}
        installed.start_agent(kubeconfig, pod)
        assert installed.node()["labels"] == {"engine": "kubernetes", "zone": "east"}

        body = word("one")
        body["metadata"]["resourceVersion"] = "1"
        api.create(APPS, body, NAMESPACE)
        eventually(lambda: condition(found(api)).get("status") == "True", "it is deployed")
        assert installed.ask() == "one"
        states = lambda: [one.get("status", {}).get("state") for one in api.list(REPLICAS, NAMESPACE)]  # noqa: E731
        eventually(lambda: states() == ["ready"], "its replica is shown")
        eventually(lambda: installed.ask_router() == ("one", False), "its machine's router leads there")
        assert httpx.get(f"http://127.0.0.1:{health}/healthz", trust_env=False).is_success
        counted = httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).text
        assert 'glowplug_operator_deployments_total{outcome="deployed"} 1.0' in counted

        api.patch(NODES, MACHINE, {"spec": {"unschedulable": True}})
        eventually(lambda: installed.node()["state"] == "draining", "a cordon drains")
        api.patch(NODES, MACHINE, {"spec": {"unschedulable": None}})
        eventually(lambda: installed.node()["state"] == "ready", "and is undone")

        operator.terminate()
        assert operator.wait(60) == 0
        api.delete(APPS, "words", NAMESPACE)
        assert installed.ask() == "one", "nobody is there to undeploy it"
        installed.operator(owned, kubeconfig)
        eventually(lambda: not found(api), "it is undeployed, and gone")
        assert installed.http.get("/words/web/").status_code == 404
        eventually(lambda: states() == [], "its replica, too")
    installed.check_nothing_is_left()
