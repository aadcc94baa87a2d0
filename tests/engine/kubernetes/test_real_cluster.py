"""Against a real kube-apiserver and etcd, with the rights of the chart: operator, control plane, agent,
sandbox.

There is no kubelet. The test stands in for it: it makes the Node and the agent's Pod, runs what the DaemonSet
would run, and brings the join token from the Secret to a file.
"""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests import needs
from tests.e2e import leftovers
from tests.engine.kubernetes.conftest import NAMESPACE, condition, eventually
from tests.engine.kubernetes.real_cluster import (
    AGENT,
    OPERATOR,
    PROGRAMS,
    RealCluster,
    applied,
    process,
)
from tests.engine.kubernetes.test_chart import CHART, NEEDED, render
from tests.engine.kubernetes.test_schema import BAD, GOOD
from tests.ports import free_ports

from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import APPS, DAEMON_SETS, NODES, PODS, REPLICAS, SECRETS
from glowplug.types.errors import GlowplugError, InvalidInput
from glowplug.types.paths import StateDir

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]

MACHINE = "n1"
TOKEN = "t" * 43
GLOWPLUG = Path(sys.executable).with_name("glowplug")
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["WORD"].encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def word(text: str, name: str = "words") -> dict[str, Any]:
    """An App that answers with a word."""
    server = {
        "name": "web",
        "image": {"kind": "host_python"},
        "command": ["python3", "-c", SERVER],
        "env": {"WORD": text},
        "resources": {"cpus": 1, "memory_bytes": 256 << 20},
        "snapshot": {"enabled": False},
        "scaling": {"max_replicas": 1, "scaledown_window_s": 600},
    }
    return {
        "apiVersion": "glowplug.dev/v1alpha1",
        "kind": "App",
        "metadata": {"name": name},
        "spec": {"servers": [server]},
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    needs.programs("etcd")
    if not (PROGRAMS / "kube-apiserver").exists():
        needs.lacking("scripts/build_kube_apiserver.sh")
    made = RealCluster("gp")
    made.kubectl("create", "namespace", NAMESPACE)
    applied(made, [yaml.safe_load(file.read_text()) for file in sorted((CHART / "crds").glob("*.yaml"))])
    made.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    yield made
    made.close()
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def api(cluster: RealCluster) -> Iterator[KubernetesApi]:
    with KubernetesApi(cluster.access()) as made:
        yield made


# -- schemas -------------------------------------------------------------------------------------------------


def test_the_rendered_chart_is_taken_by_the_api_server(cluster: RealCluster) -> None:
    said = applied(cluster, render(NEEDED), is_dry=True)
    assert "daemonset.apps/gp-agent created" in said


@pytest.mark.parametrize(("what", "spec"), BAD, ids=[what for what, _ in BAD])
def test_what_is_malformed_is_refused_by_the_api_server(
    api: KubernetesApi, what: str, spec: dict[str, Any]
) -> None:
    body = {**GOOD[0], "metadata": {"name": "malformed"}, "spec": spec}
    with pytest.raises(InvalidInput):
        api.create(APPS, body, NAMESPACE)
    assert "malformed" not in [one["metadata"]["name"] for one in api.list(APPS, NAMESPACE)], what


def test_a_name_that_is_none_of_an_app_is_refused(api: KubernetesApi) -> None:
    with pytest.raises(InvalidInput, match=r"metadata\.name"):
        api.create(APPS, {**GOOD[0], "metadata": {"name": "has.dots"}}, NAMESPACE)


def test_what_is_good_is_taken(cluster: RealCluster) -> None:
    good = [{**body, "metadata": {"name": f"good-{number}"}} for number, body in enumerate(GOOD)]
    applied(cluster, good, is_dry=True)


# -- everything together -------------------------------------------------------------------------------------


class Installed:
    """The chart's processes, without a kubelet. Control plane and agent stay; operators come and go."""

    def __init__(self, cluster: RealCluster, owned: ExitStack) -> None:
        needs.root("sandboxes")
        self.cluster = cluster
        self._owned = owned
        control_port, self.gateway_port = free_ports(2)
        self.url = f"http://127.0.0.1:{control_port}"
        self.control_state, self.agent_state = (
            StateDir(Path(tempfile.mkdtemp(prefix="gp-e2e-", dir="/var/tmp"))) for _ in range(2)
        )
        self.control_state.token.write_text(TOKEN)
        self.http = owned.enter_context(httpx.Client(base_url=self.url, timeout=120.0, trust_env=False))
        applied(cluster, [one for one in render(NEEDED) if one["kind"] not in ("Job", "Deployment")])
        owned.enter_context(
            process(
                "control", cluster.folder, sys.executable, "-m", "glowplug.control", "--no-agent",
                "--host", "127.0.0.1", "--port", str(control_port), "--state", str(self.control_state.root),
            )
        )  # fmt: skip
        eventually(self._answers, "the control plane answers")

    def _answers(self) -> bool:
        try:
            return self.http.get("/healthz?leader").is_success
        except httpx.HTTPError:
            return False

    def operator(self, owned: ExitStack) -> subprocess.Popen[bytes]:
        return owned.enter_context(
            process(
                "operator", self.cluster.folder,
                str(GLOWPLUG), "cluster", "operator", "--join-secret", "gp-join",
                KUBECONFIG=str(self.cluster.kubeconfig(OPERATOR)),
                GLOWPLUG_URL=self.url, GLOWPLUG_TOKEN=TOKEN,
            )
        )  # fmt: skip

    def start_agent(self, api: KubernetesApi) -> None:
        """As kubelet, scheduler and the controller of DaemonSets would."""
        secret = eventually(
            lambda: api.get(SECRETS, "gp-join", NAMESPACE).get("data"), "a token to join with"
        )
        token = self.cluster.folder / "join-token"
        token.write_bytes(base64.b64decode(secret["token"]))
        labels = {"topology.kubernetes.io/zone": "east"}
        api.create(
            NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": MACHINE, "labels": labels}}
        )
        template = api.list(DAEMON_SETS, NAMESPACE)[0]["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "gp-agent-0", "labels": template["metadata"]["labels"]},
            "spec": {**template["spec"], "nodeName": MACHINE},
        }
        api.create(PODS, pod, NAMESPACE)
        self._owned.enter_context(
            process(
                "agent", self.cluster.folder, sys.executable, "-m", "glowplug.engine.kubernetes",
                KUBECONFIG=str(self.cluster.kubeconfig(AGENT)), GLOWPLUG_STATE=str(self.agent_state.root),
                GLOWPLUG_MACHINE=MACHINE, GLOWPLUG_CONTROL=self.url, GLOWPLUG_ADVERTISE="127.0.0.1",
                GLOWPLUG_LISTEN=f"127.0.0.1:{self.gateway_port}", GLOWPLUG_JOIN_TOKEN_FILE=str(token),
            )
        )  # fmt: skip

    def nodes(self) -> dict[str, Any]:
        answer = self.http.get("/api/v1/nodes", headers={"Authorization": f"Bearer {TOKEN}"})
        return {node["name"]: node for node in answer.json()}

    def ask(self, app: str = "words") -> str:
        answer = self.http.get(f"/{app}/web/")
        assert answer.status_code == 200, answer.text
        return answer.text

    def ps(self) -> list[list[str]]:
        done = subprocess.run(
            [str(GLOWPLUG), "--url", self.url, "--token", TOKEN, "ps"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def installed(cluster: RealCluster) -> Iterator[Installed]:
    with ExitStack() as owned:
        made = Installed(cluster, owned)
        yield made
    left = leftovers.of_state(made.agent_state)
    assert left == [], f"logs: {cluster.folder}"
    for state in (made.control_state, made.agent_state):
        shutil.rmtree(state.root)


def shown(api: KubernetesApi, name: str = "words") -> dict[str, Any]:
    try:
        return api.get(APPS, name, NAMESPACE)
    except GlowplugError:
        return {}


def is_deployed(api: KubernetesApi, generation: int, name: str = "words") -> Callable[[], bool]:
    def is_so() -> bool:
        ready = condition(shown(api, name))
        return ready.get("status") == "True" and ready.get("observedGeneration") == generation

    return is_so


def test_an_app_is_applied_answers_and_is_shown_as_ps_shows_it(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        installed.operator(owned)
        installed.start_agent(api)
        eventually(
            lambda: installed.nodes().get(MACHINE, {}).get("state") == "ready", "the machine is a node"
        )
        assert installed.nodes()[MACHINE]["labels"] == {"engine": "kubernetes", "zone": "east"}
        applied(cluster, [word("one")])
        eventually(is_deployed(api, 1), "it is deployed")
        assert installed.ask() == "one"
        eventually(
            lambda: [one["status"]["state"] for one in api.list(REPLICAS, NAMESPACE)] == ["ready"],
            "its replica is shown",
        )
        head, line = cluster.kubectl("get", "replicas.glowplug.dev", "-n", NAMESPACE).splitlines()
        ps_head, ps_line = installed.ps()
        assert head.split()[1:9] == ps_head[1:9]
        assert line.split()[:5] == ps_line[:5]
        assert MACHINE in line
        table = cluster.kubectl("get", "apps.glowplug.dev", "-n", NAMESPACE).splitlines()
        assert table[0].split() == ["NAME", "VERSION", "READY", "REASON", "REPLICAS", "AGE"]
        assert table[1].split()[:4] == ["words", "1", "True", "Deployed"]


def test_the_api_server_is_away_for_a_while_and_nobody_notices(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        operator = installed.operator(owned)
        eventually(is_deployed(api, 1), "it is deployed")
        cluster.kill()
        for _ in range(60):
            assert installed.ask() == "one"
            time.sleep(1.0)
        assert operator.poll() is None, "the operator waits"
        cluster.start()
        applied(cluster, [word("two")])
        eventually(is_deployed(api, 2), "the change is deployed", timeout_s=120.0)
        eventually(lambda: installed.ask() == "two", "and answers")


def test_an_operator_killed_in_the_middle_is_followed_by_one_that_finishes(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    for round_number in range(3):
        with ExitStack() as owned:
            operator = installed.operator(owned)
            eventually(is_deployed(api, 2 + round_number), "what was asked before", timeout_s=120.0)
            applied(cluster, [word(f"round {round_number}")])
            time.sleep(0.05 * round_number)
            operator.send_signal(signal.SIGKILL)
            operator.wait(60)
    with ExitStack() as owned:
        installed.operator(owned)
        eventually(is_deployed(api, 5), "the last change", timeout_s=120.0)
        eventually(lambda: installed.ask() == "round 2", "and answers")
        assert shown(api)["status"]["version"] == 5, "each was deployed once"


def test_a_cordon_drains_and_what_is_refused_says_why(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        installed.operator(owned)
        cluster.kubectl("cordon", MACHINE)
        eventually(lambda: installed.nodes()[MACHINE]["state"] == "draining", "it is drained")
        cluster.kubectl("uncordon", MACHINE)
        eventually(lambda: installed.nodes()[MACHINE]["state"] == "ready", "it is used again")
        bad = word("x", "bad")
        bad["spec"]["servers"][0]["image"] = {"kind": "directory", "path": "/no/such/folder"}
        applied(cluster, [bad])
        refused = eventually(lambda: condition(shown(api, "bad")).get("message"), "it is said")
        eventually(
            lambda: "/no/such/folder" in condition(shown(api, "bad")).get("message", ""), f"not {refused}"
        )
        cluster.kubectl("delete", "apps.glowplug.dev", "bad", "-n", NAMESPACE, "--timeout=60s")


def test_a_deleted_app_is_undeployed_before_it_goes(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        installed.operator(owned)
        cluster.kubectl("delete", "apps.glowplug.dev", "words", "-n", NAMESPACE, "--timeout=120s")
        assert installed.http.get("/words/web/").status_code == 404
        eventually(lambda: not api.list(REPLICAS, NAMESPACE), "and its replicas with it")
