"""A real agent under a reaper, its API as plain calls, and what the machine still holds of its replicas."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.runtime.sandboxes import eventually

from glowplug.types.paths import StateDir
from glowplug.types.replica import StartReplica
from glowplug.types.spec import HostPythonImage, ServerSpec

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
FINAL = ("stopped", "failed")
MEMORY_BYTES = 128 << 20
QUICK_LOOK_S, LOOK_S = 0.04, 0.12
"""Between two looks at one replica, at all snapshots: the agent reads files for each, and is to get on."""
TOOLBOX = ["python3", "/servers/toolbox.py"]


class LiveAgent:
    """An agent process on its own state directory. Ids of its replicas begin with its own :attr:`app`."""

    def __init__(self, root: Path, venv: Path | None = None) -> None:
        self.state = StateDir(root)
        self.app = f"n{secrets.token_hex(3)}"
        self.runtime = "auto"
        self.image = {
            "kind": "host_python",
            "venv": str(venv) if venv else None,
            "local_dirs": [{"local_path": str(SERVERS), "remote_path": "/servers"}],
        }
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.state.agent_socket)),
            base_url="http://agent",
            timeout=120,
        )
        self._log = (root / "agent.log").open("ab")
        command = [sys.executable, "-m", "glowplug.node", "--state", str(root)]
        argv = [sys.executable, str(HERE / "reaper.py"), "--stay", str(root), *command]
        self._reaper = subprocess.Popen(argv, stderr=self._log, start_new_session=True)
        try:
            self.pid = self._await_answer()
            self.image_id = self.build(self.image)
        except BaseException:
            self.close()
            raise

    # -- the process -----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not _runs_agent(self.pid), "the agent is gone")

    def start_again(self) -> None:
        """A successor; returns once it answers, which it does after it took over."""
        self._reaper.send_signal(signal.SIGUSR1)
        self.pid = self._await_answer()

    def restart(self, number: signal.Signals) -> None:
        """End it by a signal, and start a successor."""
        os.kill(self.pid, number)
        eventually(lambda: not _runs_agent(self.pid), "the agent has left", 90)
        self.start_again()

    def close(self) -> None:
        """SIGINT: the agent stops all its replicas; the reaper leaves after it."""
        self._reaper.send_signal(signal.SIGINT)
        try:
            self._reaper.wait(90)
        finally:
            self._reaper.kill()
            self.client.close()
            self._log.close()

    def _await_answer(self) -> int:
        def answer() -> int | None:
            try:
                return int(self.client.get("/v1/node").json()["agent_pid"])
            except httpx.HTTPError:
                assert self._reaper.poll() is None, (self.state.root / "agent.log").read_text()
                return None

        return int(eventually(answer, "the agent answers", 90))

    # -- its API ---------------------------------------------------------------------------------------------

    def build(self, image: dict[str, Any]) -> str:
        """Make an image ready; its id."""
        answer = self.client.post("/v1/images", json={"image": image})
        return str(json.loads(answer.text.splitlines()[-1])["image"]["id"])

    def server(self, *command: str, **changes: Any) -> dict[str, Any]:
        """A server's specification: the toolbox unless told otherwise, and no snapshots unless asked for."""
        return {
            "name": "web",
            "image": self.image,
            "command": list(command) or TOOLBOX,
            "runtime": self.runtime,
            "resources": {"memory_bytes": MEMORY_BYTES},
            "snapshot": {"enabled": False},
            "startup_timeout_s": 120,
            **changes,
        }

    def request(self, server: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """The body that starts a replica."""
        return {
            "replica_id": f"{self.app}-web-{secrets.token_hex(3)}",
            "app": self.app,
            "deployment_id": f"{self.app}-v1",
            "server": server,
            "image_id": self.image_id,
            **changes,
        }

    def post(self, server: dict[str, Any], **changes: Any) -> httpx.Response:
        """Ask for a replica."""
        return self.client.post("/v1/replicas", json=self.request(server, **changes))

    def begin(self, server: dict[str, Any], **changes: Any) -> str:
        """Begin to start a replica; its id."""
        answer = self.post(server, **changes)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def start(self, server: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Start a replica that must become ready; its view."""
        view = self.settled(self.begin(server, **changes))
        assert view["state"] == "ready", view
        return view

    def fail(self, server: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Start a replica that must fail; its view."""
        view = self.settled(self.begin(server, **changes))
        assert view["state"] == "failed", view
        return view

    def settled(self, replica_id: str) -> dict[str, Any]:
        """The replica once it is ready or over."""
        return self.until(replica_id, "ready", *FINAL)

    def until(self, replica_id: str, *states: str, timeout_s: float = 120) -> dict[str, Any]:
        """The replica once it is in one of the states."""

        def reached() -> dict[str, Any] | None:
            view = self.view(replica_id)
            return view if view["state"] in states else None

        return dict(eventually(reached, f"{replica_id} is {states}", timeout_s, pause_s=QUICK_LOOK_S))

    def view(self, replica_id: str) -> dict[str, Any]:
        """The replica now."""
        return dict(self.client.get(f"/v1/replicas/{replica_id}").json())

    def stop(self, replica_id: str, grace_s: float = 5) -> dict[str, Any]:
        """Stop a replica and wait for its end."""
        answer = self.client.post(f"/v1/replicas/{replica_id}/stop?grace_s={grace_s}")
        assert answer.status_code == 202, answer.text
        return self.until(replica_id, *FINAL)

    def log(self, replica_id: str) -> str:
        """What it wrote."""
        return self.client.get(f"/v1/replicas/{replica_id}/logs?tail=1000").text

    def snapshots(self) -> list[dict[str, Any]]:
        """All snapshots."""
        return list(self.client.get("/v1/snapshots").json())

    def captured(self, view: dict[str, Any]) -> dict[str, Any]:
        """The snapshot of the server that ``view`` is a replica of, once its capture is over."""
        name = view["server"]

        def over() -> dict[str, Any] | None:
            found = [one for one in self.snapshots() if (one["app"], one["server"]) == (self.app, name)]
            return found[0] if found and found[0]["status"] != "capturing" else None

        return dict(eventually(over, f"{name} is captured", 180, pause_s=LOOK_S))

    def metric(self, name: str) -> float:
        """The value of a metric, or 0."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    # -- its replicas ----------------------------------------------------------------------------------------

    def ask(self, view: dict[str, Any], path: str = "/", body: object = None) -> Any:
        """What the replica answers to a GET (or a POST of ``body``), as JSON; asked inside its namespace."""
        answer = _fetch(view["endpoint"], path, body, within_s=60)
        assert answer is not None, f"{view['id']} does not answer"
        return answer

    def ask_and_lose(self, view: dict[str, Any], path: str) -> None:
        """Ask what the replica does not survive to answer."""
        assert _fetch(view["endpoint"], path, None, within_s=10) is None

    def calm_down(self) -> None:
        """Stop every replica, wait for every capture."""
        for view in self.client.get("/v1/replicas").json():
            if view["purpose"] == "serve" and view["state"] not in FINAL:
                self.stop(view["id"], grace_s=0)
        eventually(
            lambda: all(one["status"] != "capturing" for one in self.snapshots()),
            "no capture",
            180,
            pause_s=LOOK_S,
        )

    def leftovers(self) -> list[str]:
        """What the kernel and the disk still hold of its replicas."""
        found = [f"folder {path.name}" for path in self.state.replicas.iterdir()]
        found += [f"namespace {path.name}" for path in Path("/run/netns").glob(f"gp-{self.app}-*")]
        found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"*/glowplug/{self.app}-*")]
        found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"glowplug/{self.app}-*")]
        found += [f"process {argv[:100]}" for argv in self._processes()]
        found += [f"runtime {path.name}" for path in self.state.runsc_root.glob("*")]
        found += [f"runtime {path.name}" for path in self.state.runc_root.glob("*/*")]
        found += [f"staging {path.name}" for path in self.state.snapshot_staging.glob("sn-*")]
        # Files of snapshots stay mounted for the next restore, and belong to no replica.
        return found + [f"mount {line}" for line in self.mounts() if f" {self.state.lazy}/" not in line]

    def mounts(self) -> list[str]:
        """All mounts below its state directory."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in mounts if f" {self.state.root}/" in line]

    def _processes(self) -> Iterator[str]:
        mark = f"--root={self.state.runsc_root}"
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    argv = (process / "cmdline").read_text(errors="replace").split("\0")
                except OSError:
                    continue
                if mark in argv:
                    yield " ".join(argv)


def example_request(**changes: Any) -> StartReplica:
    """A request for tests that need no real replica."""
    values: dict[str, Any] = {
        "replica_id": f"gpt-parts-{os.getpid()}",
        "app": "parts",
        "deployment_id": "parts-v1",
        "server": ServerSpec(name="web", image=HostPythonImage(), command=["true"]),
        "image_id": "im-0123456789abcdef",
    }
    return StartReplica(**values | changes)


@contextmanager
def live_agent(root: Path) -> Iterator[LiveAgent]:
    """An agent that must leave nothing of its replicas behind when it stops them all."""
    agent = LiveAgent(root)
    try:
        yield agent
    finally:
        agent.close()
    assert agent.leftovers() == []
    assert agent.mounts() == []


def _runs_agent(pid: int) -> bool:
    try:
        return b"glowplug.node" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _fetch(endpoint: dict[str, Any], path: str, body: object, within_s: int) -> Any:
    """GET (or POST of ``body``) by a small program inside the namespace; None if nobody answers in time."""
    script = (
        "import json, sys, urllib.request as r\n"
        "url, body, within_s = sys.argv[1], sys.argv[2].encode() or None, float(sys.argv[3])\n"
        "print(r.urlopen(r.Request(url, body, {'content-type': 'application/json'}), timeout=within_s)"
        ".read().decode())"
    )
    url = f"http://{endpoint['host']}:{endpoint['port']}{path}"
    netns = Path(endpoint["netns"]).name
    argv = [
        "ip",
        "netns",
        "exec",
        netns,
        "python3",
        "-c",
        script,
        url,
        "" if body is None else json.dumps(body),
        str(within_s),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=within_s + 60, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None
