"""The engine's process: ``python -m glowplug.engine.ray --state DIR``, a child of the supervisor.

Every two seconds it makes sure that each machine has its agent, and writes down what it saw. It may die at
any point, and does when Ray is stuck: its supervisor starts it again. SIGTERM leaves the machines as they
are; SIGINT (``glowplug down``) ends all agents first.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from glowplug.engine.control_api import ControlApi
from glowplug.engine.counts import EngineCounts
from glowplug.engine.demand_desk import DemandDesk
from glowplug.engine.port import Machine
from glowplug.engine.ray.connected import ConnectedRay
from glowplug.engine.ray.engine import RayEngine
from glowplug.engine.ray.released import Released
from glowplug.engine.ray.settings import RaySettings
from glowplug.engine.record import read_record
from glowplug.engine.status import write_status
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.paths import StateDir

log = logging.getLogger("glowplug.engine.ray")

LOOK_S = 2.0
MOST_STUCK_S = 60.0
# What all agents of a cluster are to have alike (docs/cluster.md); credentials are each machine's own.
_SHARED_VARIABLES = (
    "GLOWPLUG_REGION", "GLOWPLUG_ZONE", "GLOWPLUG_SHARE_SNAPSHOTS", "GLOWPLUG_REGION_WAIT",
)  # fmt: skip


class Process:
    """The loop, and its end."""

    def __init__(self, state: StateDir, settings: RaySettings) -> None:
        self._state = state
        self._settings = settings
        self._clock = SystemClock()
        self._cluster = ConnectedRay(settings.address)
        self._counts = EngineCounts(RayEngine.name)
        self._engine: RayEngine | None = None
        self._desk: DemandDesk | None = None
        self._signals: list[int] = []
        self._woken = threading.Event()
        self._last_error = ""

    def run(self) -> int:
        """Until a signal; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        while not self._signals:
            self._look()
            if self._cluster.stuck_s > MOST_STUCK_S:
                log.error("Ray has not answered for %.0f s: starting anew", self._cluster.stuck_s)
                return 1
            self._woken.wait(LOOK_S)
        if self._signals[0] == signal.SIGINT:
            self._release_all()
        return 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._woken.set()

    def _look(self) -> None:
        now = self._clock.wall()
        try:
            self._tell(self._made().reconcile(), now)
            self._serve_the_desk()
        except GlowplugError as error:
            if str(error) != self._last_error:
                log.warning("%s", error)
            self._last_error = str(error)
            self._counts.failed()
            write_status(self._state, RayEngine.name, self._settings.address, now, error=error)
        else:
            if self._last_error:
                log.info("Ray and the control plane answer again")
            self._last_error = ""
        self._counts.save(self._state.engine_metrics)

    def _serve_the_desk(self) -> None:
        """What the planner wants. Its failure is no news of the machines."""
        if self._desk is None:
            self._desk = DemandDesk(self._state, self._made(), self._clock, self._tell_anew)
        try:
            self._desk.look()
        except GlowplugError as error:
            log.warning("what is wanted of Ray: %s", error)
            self._counts.failed()

    def _tell(self, machines: Sequence[Machine], now: float) -> None:
        write_status(self._state, RayEngine.name, self._settings.address, now, machines=machines)

    def _tell_anew(self) -> None:
        """A machine that was let go of would be taken for one that runs until the next look."""
        now = self._clock.wall()
        self._tell(self._made().machines(), now)

    def _made(self) -> RayEngine:
        """The engine; made late, as where others reach us may be for Ray to say."""
        if self._engine is None:
            record = read_record(self._state)
            if record is None:
                raise Unavailable("The supervisor does not say where it listens.", remedy="It is starting.")
            host = self._settings.advertise or self._own_address()
            token = self._state.token.read_text().strip() if self._state.token.exists() else None
            self._engine = RayEngine(
                self._cluster,
                ControlApi(record.url, token),
                self._settings,
                Released(self._state.released_machines),
                self._counts,
                self._clock,
                control_url=f"http://{f'[{host}]' if ':' in host else host}:{record.port}",
                environment={k: v for k in _SHARED_VARIABLES if (v := os.environ.get(k))},
            )
        return self._engine

    def _own_address(self) -> str:
        own = self._cluster.own_node()
        address = next((node.address for node in self._cluster.nodes() if node.id == own), None)
        return address or str(urlsplit(f"//{self._settings.address}").hostname)

    def _release_all(self) -> None:
        now = self._clock.wall()
        try:
            left = {machine: str(problem) for machine, problem in self._made().release_all().items()}
        except GlowplugError as error:
            log.error("the agents on other machines were not told to end: %s", error)
            write_status(self._state, RayEngine.name, self._settings.address, now, error=error)
            return
        for machine, words in left.items():
            log.error("the agent on %s did not end: %s", machine, words)
        write_status(self._state, RayEngine.name, self._settings.address, now, left=left)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="glowplug.engine.ray", description=__doc__)
    parser.add_argument("--state", required=True, help="the state directory of the control plane")
    state = StateDir(Path(parser.parse_args(arguments).state))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = RaySettings.load(state)
    except GlowplugError as error:
        log.error("%s", error)
        return 1
    settings.prepare(os.environ, state)
    return Process(state, settings).run()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # Ray's own end waits for a head that may be gone
