"""The vLLM of ``make demo`` on Kubernetes: real kube-apiserver and etcd, an agent in a network of its own.

There is no kubelet: the agent's pod is an object, and what it would run is started here, in a network
namespace that stands in for the machine. All the rest is what the chart installs. ``examples/chat_vllm.py``
is applied as an App, wakes, is captured, scales to zero and comes back. Exits with 1 unless both answers are
right. ``make demo-kubernetes`` installs and builds what it needs first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from chat import QUESTION, Answer, ask
from live_session import CACHE, EXAMPLES
from tests.e2e.cluster import CabledNetwork
from tests.engine.kubernetes.conftest import NAMESPACE
from tests.engine.kubernetes.installed import TOKEN, Installed, agent_pod
from tests.engine.kubernetes.real_cluster import AGENT, OPERATOR, RealCluster, applied, real_cluster
from tests.engine.kubernetes.test_chart import NEEDED, render

from glowplug.cli.client import ApiClient
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import API_VERSION
from glowplug.types.errors import DeadlineExceeded, GlowplugError, SnapshotInvalid
from glowplug.types.replica import SnapshotStatus

APP = "chat"
SHOWN = "apps.glowplug.dev,replicas.glowplug.dev"
_LOAD_SPEC = """
import json, os, pathlib, sys
os.environ["GLOWPLUG_VLLM_VENV"], os.environ["GLOWPLUG_MODEL_DIR"] = sys.argv[2:]
from glowplug.sdk.loader import load_app
json.dump(load_app(pathlib.Path(sys.argv[1])).to_spec()[0], sys.stdout)
"""


def main() -> int:
    """The demo. Returns its exit code."""
    began_s = time.monotonic()
    with ExitStack() as owned:
        network = owned.enter_context(laid())
        cluster = owned.enter_context(real_cluster(network.here))
        api = owned.enter_context(KubernetesApi(cluster.access()))
        applied(cluster, [one for one in render(NEEDED) if one["kind"] not in ("Job", "Deployment")])
        with ExitStack() as running:
            installed = Installed(api, cluster.folder, running, network)
            installed.operator(running, cluster.kubeconfig(OPERATOR))
            installed.start_agent(cluster.kubeconfig(AGENT), agent_pod(api))
            client = running.enter_context(ApiClient(installed.url, TOKEN))
            answers = shown(cluster, client, installed.router)
        installed.check_nothing_is_left()
    print(f"All of it took {time.monotonic() - began_s:.0f} s.")
    return 0 if all(answer.is_correct for answer in answers) else 1


def shown(cluster: RealCluster, client: ApiClient, router: str) -> list[Answer]:
    """Apply, ask cold, capture, scale to zero, ask again."""
    say(cluster, "version", "--short")
    print("\n$ kubectl apply -f chat.yaml      # examples/chat_vllm.py as an App")
    print(applied(cluster, [chat_app()]).rstrip())
    say(cluster, "wait", "--for=condition=Ready", f"app.glowplug.dev/{APP}", "--timeout=120s")
    answers = [asked(router, "cold")]
    say(cluster, "get", SHOWN)
    wait(lambda: snapshot_is_good(client), 900.0, "a good snapshot")
    wait(lambda: is_at_zero(client), 120.0, "nothing to run")
    print("\nIts snapshot is good, and it has scaled to zero.")
    wait(lambda: "zero" in kubectl(cluster, "get", "apps.glowplug.dev", APP), 30.0, "the App to say so")
    say(cluster, "get", "apps.glowplug.dev")
    answers.append(asked(router, "from its snapshot"))
    wait(lambda: "ready" in kubectl(cluster, "get", "replicas.glowplug.dev"), 30.0, "its replica's object")
    say(cluster, "get", SHOWN)
    say(cluster, "delete", "apps.glowplug.dev", APP, "--timeout=120s")
    cold_s, restored_s = (answer.first_token_s for answer in answers)
    print(f"\nFirst token after {cold_s:.2f} s cold, {restored_s:.2f} s from the snapshot.")
    return answers


def chat_app() -> dict[str, Any]:
    """``examples/chat_vllm.py``, word for word, as an object."""
    places = [str(CACHE / "engines" / "vllm-0.32.0"), str(CACHE / "models" / "smollm2-135m-instruct")]
    argv = [sys.executable, "-c", _LOAD_SPEC, str(EXAMPLES / "chat_vllm.py"), *places]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    servers = json.loads(done.stdout)["servers"]
    metadata = {"name": APP, "namespace": NAMESPACE}
    return {"apiVersion": API_VERSION, "kind": "App", "metadata": metadata, "spec": {"servers": servers}}


def asked(router: str, how: str) -> Answer:
    """The question, through the router on the machine."""
    print(f"\nyou ({how}, through the machine's router): {QUESTION}")
    timeout = httpx.Timeout(60.0, read=900.0)
    with httpx.Client(base_url=f"http://{router}", timeout=timeout, trust_env=False) as http:
        answer = ask(http)
    print(f"smollm2: {answer.text}")
    print(f"  first token after {answer.first_token_s:.2f} s, all after {answer.total_s:.2f} s", flush=True)
    return answer


def is_at_zero(client: ApiClient) -> bool:
    """Nothing of it runs."""
    return not any(view.app == APP and not view.state.is_final for view in client.replicas())


def snapshot_is_good(client: ApiClient) -> bool:
    """Raises SnapshotInvalid when it will never be."""
    found = [view for view in client.snapshots() if view.app == APP]
    for view in found:
        if view.status is SnapshotStatus.QUARANTINED:
            raise SnapshotInvalid(f"Snapshot {view.id} is quarantined: {view.reason}", snapshot=view.id)
    return any(view.status is SnapshotStatus.GOOD for view in found)


def kubectl(cluster: RealCluster, *arguments: str) -> str:
    """What it prints."""
    return cluster.kubectl("-n", NAMESPACE, *arguments)


def say(cluster: RealCluster, *arguments: str) -> None:
    """Show the command, and what it prints."""
    print(f"\n$ kubectl {' '.join(arguments)}\n{kubectl(cluster, *arguments).rstrip()}", flush=True)


def wait(is_done: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Raises DeadlineExceeded."""
    until_s = time.monotonic() + deadline_s
    while not is_done():
        if time.monotonic() >= until_s:
            raise DeadlineExceeded(f"Waited {deadline_s:.0f} s for {what} in vain.")
        time.sleep(0.25)


@contextmanager
def laid() -> Iterator[CabledNetwork]:
    """A network for the machine, and its cable; gone afterwards."""
    network = CabledNetwork()
    network.lay_cable()
    try:
        yield network
    finally:
        network.remove_cable()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GlowplugError as error:
        sys.exit(f"demo-kubernetes: {error}")
