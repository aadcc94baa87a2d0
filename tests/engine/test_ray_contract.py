"""The engine ``ray`` against the contract of engines, on a real Ray: a head and two machines."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.e2e.cluster import nodes
from tests.e2e.conftest import Apps
from tests.e2e.live import Live
from tests.e2e.ray_machines import RayMachine, pids_that_mention, ray_head, ray_machines
from tests.ports import free_port

from glowplug.engine.control_api import ControlApi
from glowplug.engine.counts import EngineCounts
from glowplug.engine.port import Demand, Engine, Machine, MachineState
from glowplug.engine.ray.connected import ConnectedRay
from glowplug.engine.ray.engine import RayEngine
from glowplug.engine.ray.head import head_command
from glowplug.engine.ray.released import Released
from glowplug.engine.ray.settings import RaySettings
from glowplug.types.clock import SystemClock

from .conftest import eventually
from .contract import LONG_S, EngineContract, Site

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: make ray"),
]


class Noting(RayEngine):
    """Ray nodes that were drained or released are of no further use: remembered, to be started anew."""

    used_up: set[str] = set()

    def drain(self, machine_id: str) -> None:
        super().drain(machine_id)
        self.used_up.add(machine_id)

    def release(self, machine_id: str) -> None:
        super().release(machine_id)
        self.used_up.add(machine_id)


class OnRay(Site):
    """This process is the engine's: a driver of the real cluster."""

    def __init__(
        self, live: Live, address: str, token: str, machines: list[RayMachine], folder: Path
    ) -> None:
        self.live = live
        self.machines = {machine.name: machine for machine in machines}
        self._address, self._token = address, token
        self.cluster = ConnectedRay(address)
        here, port = address.rpartition(":")[0], live.url.rpartition(":")[2]
        self.noting = Noting(
            self.cluster,
            ControlApi(live.url),
            RaySettings(
                address=address, starts_head=True, node_state=f"{machines[0].state.root.parent}/{{node}}"
            ),
            Released(folder / "released.json"),
            EngineCounts("ray"),
            SystemClock(),
            control_url=f"http://{here}:{port}",
            environment={},
        )
        self.engine: Engine = self.noting
        self.apps: Apps | None = None

    def heal(self) -> None:
        """All is as in the beginning."""
        eventually(lambda: _answers(self.engine), LONG_S)
        if self.apps is not None:
            self.live.remove(self.apps.names)
            self.apps = None
        used_up = {one.node for one in self.engine.machines() if one.id in self.noting.used_up}
        for name in used_up & self.machines.keys():
            self.machines[name].stop_ray()
            self.start_ray(self.machines[name])
        self.noting.used_up.clear()
        for name in (socket.gethostname(), *(name for name in nodes(self.live) if name != "here")):
            self.live.cli("cluster", "drain", name, "--undo")

    def start_ray(self, machine: RayMachine) -> None:
        """One after the other: in the folder that they share two at once take one another's names."""
        before = {one.id for one in self.engine.machines()}

        def is_there() -> bool:
            machine.start_ray_again_if_it_ended(self._address, self._token)
            new = [one for one in self.engine.machines() if one.id not in before]
            return any(one.node == machine.name and one.state is not MachineState.GONE for one in new)

        eventually(is_there, LONG_S)

    def agents_of(self, machine: Machine) -> int:
        return self.machines[machine.node].agents()

    def kill_agent(self, machine: Machine) -> None:
        self.machines[machine.node].kill_agent()

    @contextmanager
    def away(self) -> Iterator[Engine]:
        self.engine.machines()
        (gcs,) = pids_that_mention(f"gcs_server_port={self._address.rpartition(':')[2]}")
        os.kill(gcs, signal.SIGSTOP)
        try:
            yield self.engine
        finally:
            os.kill(gcs, signal.SIGCONT)

    def run_replica(self) -> str:
        self.live.cli("cluster", "drain", socket.gethostname())
        folder = Path(self.live.state.root / f"apps-{secrets.token_hex(4)}")
        folder.mkdir()
        self.apps = Apps(self.live, folder)
        app = self.apps.deploy(word="con", snapshot=False, min_replicas=1)
        app.ask("/who")
        return str(self.live.ready(app.name)[0].node)

    def nodes_of_replicas(self) -> list[str]:
        assert self.apps is not None
        return [str(one.node) for name in self.apps.names for one in self.live.ready(name)]

    def node_names(self) -> set[str]:
        return set(nodes(self.live)) - {"here"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    folder = tmp_path_factory.mktemp("ray")
    token = secrets.token_hex(32)
    live = Live(host="0.0.0.0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    with ExitStack() as owned:
        own = owned.enter_context(pytest.MonkeyPatch.context())  # this process is a driver
        own.setenv("RAY_AUTH_MODE", "token")
        own.setenv("RAY_AUTH_TOKEN", token)
        machines = owned.enter_context(ray_machines(live, 2))
        owned.enter_context(live)
        address = f"{machines[0].here}:{free_port()}"
        head = ray_head(head_command(address), live, folder / "head.log")
        owned.callback(head.wait, 60)
        owned.callback(head.terminate)
        on_ray = OnRay(live, address, token, machines, folder)
        owned.callback(on_ray.cluster.close)
        eventually(lambda: _answers(on_ray.engine), LONG_S)
        for machine in machines:
            on_ray.start_ray(machine)
        yield on_ray


@pytest.fixture
def site(cluster: OnRay) -> Iterator[OnRay]:
    yield cluster
    cluster.heal()


def _answers(engine: Engine) -> bool:
    try:
        return bool(engine.machines())
    except Exception:
        return False


class TestRayEngine(EngineContract):
    """All of the contract, and what only a real Ray can show."""

    def test_a_killed_actor_is_back_and_its_agent_never_went(self, site: OnRay) -> None:
        victim = site.running()[0]
        machine = site.machines[victim.node]
        before = machine.supervisor_pid()
        machine.kill_actor()
        eventually(lambda: site.noting.reconcile() and site.noting._of(victim.id).report is not None, LONG_S)
        assert site.running()
        assert (machine.agents(), machine.supervisor_pid()) == (1, before)

    def test_what_the_autoscaler_is_to_have_room_for_is_in_rays_hands(self, site: OnRay) -> None:
        from ray.experimental.internal_kv import _internal_kv_get

        import ray

        site.running()
        site.engine.ask([Demand(count=2, cpus=0.5)])
        asked = json.loads(
            site.cluster._ask("the demand", lambda: _internal_kv_get(b"autoscaler_resource_request"))
        )
        assert asked == [{"CPU": 0.5}] * 2
        assert ray.is_initialized()
        site.engine.ask([])

    def test_a_machine_that_is_drained_is_draining_in_ray(self, site: OnRay) -> None:
        drained = site.running()[0]
        site.engine.drain(drained.id)
        assert site.state_of(drained) is MachineState.DRAINING
