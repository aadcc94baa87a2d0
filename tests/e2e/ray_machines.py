"""Machines of a real Ray cluster on this one: network namespaces on one bridge, each with its raylet.

The head, and the control plane, are on this machine as it is. The others reach it at the bridge's address.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e import leftovers
from tests.e2e.bridge import Bridge, BridgedMachine, a_bridge
from tests.e2e.cluster import ip, nodes, wait_for_state
from tests.e2e.live import GLOWPLUG, Live
from tests.ports import free_port

from glowplug.engine.processes import wait_for_exit
from glowplug.identity.tokens import JoinToken
from glowplug.types.paths import StateDir

_MODULES_OF_A_NODE = (
    "glowplug.engine.supervisor", "glowplug.node", "glowplug.node.gateway", "glowplug.control.edge",
)  # fmt: skip


class RayLive(Live):
    """Started by ``cluster up --engine ray`` with these options."""

    options: tuple[str, ...] = ()
    address: str = ""

    def __enter__(self) -> RayLive:
        try:
            done = self.cli("cluster", "up", "--engine", "ray", "--port", "0", *self.options, timeout_s=240.0)
            self.url = f"http://127.0.0.1:{json.loads(self.state.supervisor.read_text())['port']}"
            assert f"answers at {self.url}" in done.stdout
            self.connect()
        except BaseException:
            self.cli("cluster", "down", code=None)
            raise
        return self


class RayMachine(BridgedMachine):
    """A namespace with a raylet; its agent's state directory is below ``folder``."""

    def __init__(self, live: Live, folder: Path, bridge: Bridge) -> None:
        super().__init__(live, "", bridge)
        shutil.rmtree(self.state.root)
        self.name = f"ray-{self.there.replace('.', '-')}"
        self.state = StateDir(folder / self.name)
        self.environment["GLOWPLUG_STATE"] = str(self.state.root)
        self._ray: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{self.name}.ray.log"

    def lay_cable(self) -> None:
        super().lay_cable()
        ip("-n", self.netns, "route", "add", "default", "via", self.here)

    def start_ray(self, address: str, token: str, *options: str) -> None:
        """``glowplug cluster join ADDRESS --engine ray --foreground`` here."""
        self._start(address, "--token", token, "--advertise", self.there, *options)

    def start_ray_again(self, *options: str) -> None:
        """As the same machine of the same cluster of ours."""
        self._start(*options)

    def _start(self, *options: str) -> None:
        assert self._ray is None
        argv = [
            *self.inside, str(GLOWPLUG), "cluster", "join", "--engine", "ray", "--foreground", *options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._ray = subprocess.Popen(
                argv,
                env={**self.live.environment, "GLOWPLUG_STATE": str(self.state.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def join_cluster(self, live: RayLive, *options: str) -> float:
        """Start Ray here, and wait until the node is ready; the seconds that it took."""
        began_s = time.monotonic()
        token = live.cli("cluster", "token", "--ttl", "10m").stdout.strip()
        self.start_ray(f"{self.here}:{live.url.rpartition(':')[2]}", token, *options)
        live.wait_for(lambda: self.name in nodes(live), f"{self.name} to join")
        wait_for_state(live, self.name, "ready")
        took_s = time.monotonic() - began_s
        live.cli("cluster", "token", "--revoke", JoinToken.parse(token).id)
        return took_s

    def start_ray_again_if_it_ended(self, address: str, token: str) -> None:
        """As its init system would."""
        if self._ray is not None and self._ray.poll() is not None:
            self._ray = None
        if self._ray is None:
            self.start_ray(address, token)

    def stop_ray(self) -> None:
        """As when its init system ends it, or it has ended."""
        if self._ray is not None:
            self._ray.terminate()
            try:
                self._ray.wait(60)
            except subprocess.TimeoutExpired:
                self._ray.kill()
                self._ray.wait(60)
            self._ray = None

    def kill_raylet(self) -> None:
        """kill -9 of Ray's own process on this machine; those above and below it end by that."""
        assert self._ray is not None
        os.kill(self.pid_here("raylet"), signal.SIGKILL)
        self._ray.wait(60)
        self._ray = None

    def kill_actor(self) -> None:
        """kill -9 of the process of the actor here."""
        os.kill(self.pid_here("ray::AgentActor"), signal.SIGKILL)

    def agents(self) -> int:
        """How many agents run on its state directory."""
        return len(_pids_of("glowplug.node", self.state))

    def kill_agent(self) -> None:
        """kill -9 of its supervisor: agent, gateway and router end with it. Returns when all are gone."""
        gone = [pid for module in _MODULES_OF_A_NODE for pid in _pids_of(module, self.state)]
        os.kill(gone[0], signal.SIGKILL)
        for pid in gone:
            assert wait_for_exit(pid, 60), f"{pid} outlived its supervisor"

    def supervisor_pid(self) -> int:
        (pid,) = _pids_of("glowplug.engine.supervisor", self.state)
        return pid

    def pid_here(self, name: str) -> int:
        """The process in its network whose program is called so."""
        for pid, words in self._processes_here():
            if Path(words[0]).name.startswith(name):
                return pid
        raise AssertionError(f"no {name} in the namespace of {self.name} (log: {self.log})")

    def _processes_here(self) -> Iterator[tuple[int, list[str]]]:
        own = Path(f"/run/netns/{self.netns}").stat().st_ino
        for pid, words in _processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/ns/net").stat().st_ino == own:
                    yield pid, words

    def _pids(self) -> list[int]:
        return sorted({*super()._pids(), *(pid for pid, _ in self._processes_here())})


def ray_head(command: Sequence[str], live: Live, log: Path) -> subprocess.Popen[bytes]:
    """Ray's own head, started by hand."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=live.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


@contextlib.contextmanager
def ray_machines(live: Live, count: int) -> Iterator[list[RayMachine]]:
    """Cables are there; nothing runs yet. At the end nothing does any more."""
    folder = Path(tempfile.mkdtemp(prefix="gp-ray-", dir="/var/tmp"))
    with contextlib.ExitStack() as owned:
        bridge = owned.enter_context(a_bridge())
        machines = [RayMachine(live, folder, bridge) for _ in range(count)]
        for machine in machines:
            machine.lay_cable()
            owned.callback(machine.remove_cable)
        try:
            yield machines
        finally:
            for machine in machines:
                machine.stop_ray()
                machine.cli("down", code=None)
            left = [one for machine in machines for one in leftovers.of_state(machine.state)]
    assert left == [], f"logs are in {folder}"
    shutil.rmtree(folder)


@contextlib.contextmanager
def on_ray(count: int, *options: str, **environment: str) -> Iterator[tuple[RayLive, list[RayMachine]]]:
    """A Ray cluster of ours, with so many machines that have not joined."""
    live = RayLive(**environment)
    with ray_machines(live, count) as machines:
        folder, here, port = machines[0].state.root.parent, machines[0].here, free_port()
        live.address = f"{here}:{port}"
        live.options = (
            "--advertise", here, "--ray-port", str(port), "--node-state", f"{folder}/{{node}}",
            "--timeout", "200", *options,
        )  # fmt: skip
        with live:
            yield live, machines


def pids_that_mention(word: str) -> list[int]:
    """Processes with this in their command lines."""
    return [pid for pid, words in _processes() if any(word in one for one in words)]


def _pids_of(module: str, state: StateDir) -> list[int]:
    return [pid for pid, words in _processes() if words[1:3] == ["-m", module] and str(state.root) in words]


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if process.name.isdigit() and (text := (process / "cmdline").read_text(errors="replace")):
                found.append((int(process.name), text.split("\0")))
    return found
