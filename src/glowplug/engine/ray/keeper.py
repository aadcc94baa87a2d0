"""What an actor does on its machine: it keeps one agent running, and ends it when told to.

The agent is no child of the actor's. What is true lies in its state directory: who holds the supervisor's
lock there, and what it joined. So an actor that was killed and started again adopts what it finds, and two at
once do no harm: one supervisor can hold the directory.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glowplug.engine import embedded
from glowplug.engine.ray.agent import AgentReport, AgentSettings, JoinOrder
from glowplug.engine.ray.settings import SERVE_VARIABLE
from glowplug.engine.record import Role, is_supervised, read_record
from glowplug.identity.membership import read_membership
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError
from glowplug.types.paths import StateDir

STARTER = (sys.executable, "-m", "glowplug.engine.ray.starter")
LOOK_S = 2.0
START_TIMEOUT_S = 100.0
STOP_TIMEOUT_S = 80.0
_LONGEST_PAUSE_S = 30.0
_MORE_THAN_A_START_S = 20.0
# Ray's own variables, its token among them, and what it limits its workers by, are nothing for an agent.
_RAYS_PREFIX = "RAY_"
_RAYS_VARIABLES = frozenset({"OMP_NUM_THREADS"})


class AgentKeeper:
    """Owner of a thread. :meth:`report` never blocks; :meth:`join` is done by that thread."""

    def __init__(
        self, settings: AgentSettings, *, starter: tuple[str, ...] = STARTER, look_s: float = LOOK_S
    ) -> None:
        self._settings = settings
        self._state = StateDir(Path(settings.folder))
        self._starter = starter
        self._look_s = look_s
        self._orders: queue.Queue[JoinOrder | None] = queue.Queue()
        self._starting = threading.Lock()
        self._is_wanted = True
        self._is_over = False
        self._pause_until_s = 0.0
        self._failures = 0
        self._problem: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._keep, name="agent-keeper", daemon=True)
        self._thread.start()

    def report(self) -> AgentReport:
        """What is here now."""
        try:
            joined = read_membership(self._state.identity)
            record = read_record(self._state) if is_supervised(self._state) else None
        except (GlowplugError, OSError) as error:
            return AgentReport(self._settings, problem=_as_problem(error))
        problem = self._problem
        if record is not None and record.role is not Role.NODE:
            problem = _as_problem(
                Conflict(
                    f"The control plane runs on the state directory {self._settings.folder}.",
                    remedy="Give the agents another: cluster up --node-state.",
                )
            )
        return AgentReport(
            settings=self._settings,
            node=joined.name if joined else None,
            control_url=joined.control_url if joined else None,
            is_kept=record is not None and record.role is Role.NODE,
            is_busy=self._orders.unfinished_tasks > 0 or self._starting.locked(),
            problem=problem,
        )

    def join(self, order: JoinOrder) -> None:
        """Join and start, or start again as something else; the report tells how it went."""
        self._is_wanted = True
        self._problem = None
        self._orders.put(order)

    def stop(self) -> None:
        """End the agent and its replicas; returns when nothing is left. Raises DeadlineExceeded."""
        self._is_wanted = False
        if not self._starting.acquire(timeout=START_TIMEOUT_S):
            raise DeadlineExceeded(
                "The agent is still being started.", remedy="Try again in a moment.", stage="stop"
            )
        try:
            record = read_record(self._state) if is_supervised(self._state) else None
            if record is None or record.role is Role.NODE:
                embedded.down(self._state, timeout_s=STOP_TIMEOUT_S)
        finally:
            self._starting.release()

    def close(self) -> None:
        """End the thread, and leave the agent as it is."""
        self._is_over = True
        self._orders.put(None)
        self._thread.join(START_TIMEOUT_S + _MORE_THAN_A_START_S)

    def _keep(self) -> None:
        while not self._is_over:
            try:
                order = self._orders.get(timeout=self._look_s)
            except queue.Empty:
                self._start_if_it_is_gone()
                continue
            if order is not None:
                with self._starting:
                    self._start(order)
            self._orders.task_done()

    def _start_if_it_is_gone(self) -> None:
        if self._is_to_be_started():
            with self._starting:
                self._start(None)

    def _is_to_be_started(self) -> bool:
        if not self._is_wanted or self._is_over or time.monotonic() < self._pause_until_s:
            return False
        try:
            return read_membership(self._state.identity) is not None and not is_supervised(self._state)
        except (GlowplugError, OSError) as error:
            self._problem = _as_problem(error)
            return False

    def _start(self, order: JoinOrder | None) -> None:
        if not self._is_wanted:
            return
        self._problem = self._run_starter(order)
        self._failures = self._failures + 1 if self._problem else 0
        pause_s = min(_LONGEST_PAUSE_S, 2.0 ** min(self._failures, 10)) if self._failures else 0.0
        self._pause_until_s = time.monotonic() + pause_s

    def _run_starter(self, order: JoinOrder | None) -> dict[str, Any] | None:
        command = [*self._starter, "--state", str(self._state.root), "--timeout", f"{START_TIMEOUT_S:g}"]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(self._spelled_out(order)) if order else "",
                capture_output=True,
                text=True,
                cwd="/",
                env=self._environment(),
                timeout=START_TIMEOUT_S + _MORE_THAN_A_START_S,
                check=False,
            )
            answer = json.loads(done.stdout or "{}")
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            return _as_problem(error)
        if "node" in answer:
            return None
        words = done.stderr[-2000:]
        return dict(answer.get("error") or _as_problem(RuntimeError(words or f"exit code {done.returncode}")))

    def _spelled_out(self, order: JoinOrder) -> dict[str, Any]:
        settings = asdict(self._settings)
        names = ("control_url", "name", "advertise", "gateway_port", "labels")
        serve = os.environ.get(SERVE_VARIABLE) or self._settings.serve
        return {"token": order.token, "serve": serve, **{name: settings[name] for name in names}}

    def _environment(self) -> dict[str, str]:
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_RAYS_PREFIX) and name not in _RAYS_VARIABLES
        }
        return self._settings.environment | own


def _as_problem(error: Exception) -> dict[str, Any]:
    if isinstance(error, GlowplugError):
        return error.to_dict()
    return GlowplugError(
        f"The agent cannot be started: {type(error).__name__}: {error}",
        remedy="See the log of Ray's worker, and `glowplug doctor` on that machine.",
    ).to_dict()
