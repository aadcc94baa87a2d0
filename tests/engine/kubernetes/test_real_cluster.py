"""Operator, control plane, agent and sandbox against a real kube-apiserver, with the chart's rights."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.engine.kubernetes.conftest import NAMESPACE, condition, eventually
from tests.engine.kubernetes.installed import MACHINE, TOKEN, Installed, agent_pod, word
from tests.engine.kubernetes.real_cluster import AGENT, OPERATOR, RealCluster, applied, real_cluster
from tests.engine.kubernetes.test_chart import NEEDED, render
from tests.engine.kubernetes.test_schema import BAD, GOOD

from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import APPS, REPLICAS
from glowplug.types.errors import GlowplugError, InvalidInput

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with real_cluster() as made:
        yield made


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


@pytest.fixture(scope="module")
def installed(cluster: RealCluster, api: KubernetesApi) -> Iterator[Installed]:
    applied(cluster, [one for one in render(NEEDED) if one["kind"] not in ("Job", "Deployment")])
    with ExitStack() as owned:
        made = Installed(api, cluster.folder, owned)
        yield made
    made.check_nothing_is_left()


def shown(api: KubernetesApi, name: str = "words") -> dict[str, Any]:
    try:
        return api.get(APPS, name, NAMESPACE)
    except GlowplugError:
        return {}


def is_deployed(
    api: KubernetesApi,
    generation: int,
    name: str = "words",
    operator: subprocess.Popen[bytes] | None = None,
) -> Callable[[], bool]:
    def is_so() -> bool:
        assert operator is None or operator.poll() is None, "the operator has ended: see its log"
        ready = condition(shown(api, name))
        return ready.get("status") == "True" and ready.get("observedGeneration") == generation

    return is_so


def test_an_app_is_applied_answers_and_is_shown_as_ps_shows_it(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        installed.operator(owned, cluster.kubeconfig(OPERATOR))
        installed.start_agent(cluster.kubeconfig(AGENT), agent_pod(api))
        assert installed.node()["labels"] == {"engine": "kubernetes", "zone": "east"}
        applied(cluster, [word("one")])
        eventually(is_deployed(api, 1), "it is deployed")
        assert installed.ask() == "one"
        eventually(
            lambda: (
                [one.get("status", {}).get("state") for one in api.list(REPLICAS, NAMESPACE)] == ["ready"]
            ),
            "its replica is shown",
        )
        eventually(lambda: installed.ask_router() == ("one", False), "its machine's router leads there")
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
        operator = installed.operator(owned, cluster.kubeconfig(OPERATOR))
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
            operator = installed.operator(owned, cluster.kubeconfig(OPERATOR))
            asked = is_deployed(api, 2 + round_number, operator=operator)
            eventually(asked, "what was asked before", timeout_s=120.0)
            applied(cluster, [word(f"round {round_number}")])
            time.sleep(0.05 * round_number)
            operator.send_signal(signal.SIGKILL)
            operator.wait(60)
    with ExitStack() as owned:
        operator = installed.operator(owned, cluster.kubeconfig(OPERATOR))
        eventually(is_deployed(api, 5, operator=operator), "the last change", timeout_s=120.0)
        eventually(lambda: installed.ask() == "round 2", "and answers")
        assert shown(api)["status"]["version"] == 5, "each was deployed once"


def test_a_cordon_drains_and_what_is_refused_says_why(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        installed.operator(owned, cluster.kubeconfig(OPERATOR))
        cluster.kubectl("cordon", MACHINE)
        eventually(lambda: installed.node()["state"] == "draining", "it is drained")
        cluster.kubectl("uncordon", MACHINE)
        eventually(lambda: installed.node()["state"] == "ready", "it is used again")
        bad = word("x", "bad")
        bad["spec"]["servers"][0]["image"] = {"kind": "directory", "path": "/no/such/folder"}
        applied(cluster, [bad])
        refused = eventually(lambda: condition(shown(api, "bad")).get("message"), "it is said")
        eventually(
            lambda: "/no/such/folder" in condition(shown(api, "bad")).get("message", ""), f"not {refused}"
        )
        cluster.kubectl("delete", "apps.glowplug.dev", "bad", "-n", NAMESPACE, "--timeout=60s")


def test_what_is_too_large_is_refused_and_what_serves_goes_on(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    def variables(count: int) -> dict[str, Any]:
        env = {f"A{number}": "x" * 120_000 for number in range(count)}
        return {"spec": {"servers": [{**word("x")["spec"]["servers"][0], "env": env}]}}

    before = installed.http.get("/api/v1/deployments", headers=BEARER).json()
    with ExitStack() as owned:
        installed.operator(owned, cluster.kubeconfig(OPERATOR))
        with pytest.raises(GlowplugError, match="Kubernetes: "):
            api.patch(APPS, "words", variables(40), NAMESPACE)
        assert condition(shown(api))["status"] == "True", "the API server has not even taken it"
        api.patch(APPS, "words", variables(10), NAMESPACE)
        refused = lambda: condition(shown(api)).get("reason") == "InvalidInput"  # noqa: E731
        eventually(refused, "it is refused", timeout_s=120.0)
        assert "of at most 1048576" in condition(shown(api))["message"]
        assert condition(shown(api), "Progressing")["reason"] == "Refused"
        assert installed.ask() == "round 2"
        assert installed.http.get("/api/v1/deployments", headers=BEARER).json() == before


def test_a_deleted_app_is_undeployed_before_it_goes(
    cluster: RealCluster, api: KubernetesApi, installed: Installed
) -> None:
    with ExitStack() as owned:
        installed.operator(owned, cluster.kubeconfig(OPERATOR))
        cluster.kubectl("delete", "apps.glowplug.dev", "words", "-n", NAMESPACE, "--timeout=120s")
        assert installed.http.get("/words/web/").status_code == 404
        eventually(lambda: not api.list(REPLICAS, NAMESPACE), "and its replicas with it")
