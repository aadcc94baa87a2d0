"""What the chart installs, as processes: control plane, operator, agent. This stands in for the kubelet.

It makes the Node and the agent's Pod, runs what the DaemonSet would run, and brings the join token from the
Secret to a file. The API server is anybody's.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests import needs
from tests.e2e import leftovers
from tests.engine.kubernetes.conftest import NAMESPACE, eventually
from tests.ports import free_ports

from glowplug.engine.kubernetes.names import DAEMON_SETS, NODES, PODS, SECRETS
from glowplug.engine.kubernetes.object_api import ObjectApi
from glowplug.types.paths import StateDir

MACHINE = "n1"
TOKEN = "t" * 43
GLOWPLUG = Path(sys.executable).with_name("glowplug")
_SERVER = """
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
        "command": ["python3", "-c", _SERVER],
        "env": {"WORD": text},
        "resources": {"cpus": 1, "memory_bytes": 256 << 20},
        "snapshot": {"enabled": False},
        "scaling": {"max_replicas": 1, "scaledown_window_s": 600},
    }
    return {
        "apiVersion": "glowplug.dev/v1alpha1",
        "kind": "App",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"servers": [server]},
    }


def agent_pod(api: ObjectApi) -> dict[str, Any]:
    """As the controller of DaemonSets would make it of the chart's."""
    template = api.list(DAEMON_SETS, NAMESPACE)[0]["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "gp-agent-0", "labels": template["metadata"]["labels"]},
        "spec": {**template["spec"], "nodeName": MACHINE},
    }


@contextmanager
def process(name: str, folder: Path, *argv: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours, in the background, with its log in ``folder``; ended with the context."""
    with (folder / f"{name}.log").open("ab") as log:
        started = subprocess.Popen(
            argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(60)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait(60)


class Installed:
    """Control plane and agent stay; operators come and go. ``folder`` has the logs."""

    def __init__(self, api: ObjectApi, folder: Path, owned: ExitStack) -> None:
        needs.root("sandboxes")
        self.api = api
        self.folder = folder
        self._owned = owned
        control_port, self._gateway_port, router_port = free_ports(3)
        self.router = f"127.0.0.1:{router_port}"
        self.url = f"http://127.0.0.1:{control_port}"
        self._control_state, self._agent_state = (
            StateDir(Path(tempfile.mkdtemp(prefix="gp-e2e-", dir="/var/tmp"))) for _ in range(2)
        )
        self._control_state.token.write_text(TOKEN)
        self.http = owned.enter_context(httpx.Client(base_url=self.url, timeout=120.0, trust_env=False))
        owned.enter_context(
            process(
                "control", folder,
                sys.executable, "-m", "glowplug.control", "--no-agent",
                "--host", "127.0.0.1", "--port", str(control_port), "--state", str(self._control_state.root),
            )
        )  # fmt: skip
        eventually(self._answers, "the control plane answers")

    def _answers(self) -> bool:
        try:
            return self.http.get("/healthz?leader").is_success
        except httpx.HTTPError:
            return False

    def operator(self, owned: ExitStack, kubeconfig: Path, *options: str) -> subprocess.Popen[bytes]:
        return owned.enter_context(
            process(
                "operator", self.folder,
                str(GLOWPLUG), "cluster", "operator", "--join-secret", "gp-join", *options,
                KUBECONFIG=str(kubeconfig), GLOWPLUG_URL=self.url, GLOWPLUG_TOKEN=TOKEN,
            )
        )  # fmt: skip

    def start_agent(self, kubeconfig: Path, pod: dict[str, Any]) -> None:
        """As kubelet, scheduler and the controller of DaemonSets would, with this pod."""
        data = eventually(
            lambda: self.api.get(SECRETS, "gp-join", NAMESPACE).get("data"), "a token to join with"
        )
        token = self.folder / "join-token"
        token.write_bytes(base64.b64decode(data["token"]))
        labels = {"topology.kubernetes.io/zone": "east"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": MACHINE, "labels": labels}}
        self.api.create(NODES, node)
        self.api.create(PODS, pod, NAMESPACE)
        self._owned.enter_context(
            process(
                "agent", self.folder,
                sys.executable, "-m", "glowplug.engine.kubernetes",
                KUBECONFIG=str(kubeconfig), GLOWPLUG_STATE=str(self._agent_state.root),
                GLOWPLUG_MACHINE=MACHINE, GLOWPLUG_CONTROL=self.url, GLOWPLUG_ADVERTISE="127.0.0.1",
                GLOWPLUG_LISTEN=f"127.0.0.1:{self._gateway_port}", GLOWPLUG_SERVE=self.router,
                GLOWPLUG_JOIN_TOKEN_FILE=str(token),
            )
        )  # fmt: skip
        eventually(lambda: self.node().get("state") == "ready", "the machine is a node")

    def node(self) -> dict[str, Any]:
        """The machine as the control plane sees it; empty before it has joined."""
        listed = self.http.get("/api/v1/nodes", headers={"Authorization": f"Bearer {TOKEN}"}).json()
        return next((one for one in listed if one["name"] == MACHINE), {})

    def ask(self, app: str = "words") -> str:
        answer = self.http.get(f"/{app}/web/")
        assert answer.status_code == 200, answer.text
        return answer.text

    def ask_router(self, app: str = "words") -> tuple[str, bool]:
        """The answer through the machine's own router; whether that handed it on to the control plane."""
        with httpx.Client(base_url=f"http://{self.router}", timeout=120.0, trust_env=False) as http:

            def handed_on() -> float:
                token = self._agent_state.token.read_text().strip()
                text = http.get("/metrics", headers={"Authorization": f"Bearer {token}"}).text
                name = "glowplug_router_handed_on_total"
                return sum(float(one.rsplit(" ", 1)[1]) for one in text.splitlines() if one.startswith(name))

            before = handed_on()
            answer = http.get(f"/{app}/web/")
            assert answer.status_code == 200, answer.text
            return answer.text, handed_on() > before

    def ps(self) -> list[list[str]]:
        done = subprocess.run(
            [str(GLOWPLUG), "--url", self.url, "--token", TOKEN, "ps"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return [line.split() for line in done.stdout.splitlines()]

    def check_nothing_is_left(self) -> None:
        """After all processes have ended."""
        left = leftovers.of_state(self._agent_state)
        assert left == [], f"logs: {self.folder}"
        for state in (self._control_state, self._agent_state):
            shutil.rmtree(state.root)
