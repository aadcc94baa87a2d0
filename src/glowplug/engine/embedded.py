"""One machine as an engine: start, stop and inspect the supervisor and what it keeps alive.

In front of the agent that is the control plane, or gateway and router where it is a node of a cluster.
``up`` may be called again and again and returns only when both what is in front and the agent answer;
``down`` returns only when nothing of the state directory runs any more, also after a crash that left
sandboxes without an agent. Both take deadlines.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from glowplug.engine.launch import Beside, Commands, forwarding_signals, launched
from glowplug.engine.processes import (
    Process,
    contained_pids,
    end_processes,
    is_supervisor,
    processes_of,
    wait_for_exit,
)
from glowplug.engine.record import Role, SupervisorRecord, is_supervised, read_record
from glowplug.engine.rotating_log import tail
from glowplug.snapshot.sealing.memory_folder import remove_memory_folders
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError, Unavailable
from glowplug.types.paths import StateDir

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 90.0
_POLL_S = 0.05
_LOOK_S = 0.5
_PROBE_TIMEOUT_S = 2.0
_TAIL_LINES = 15
GATEWAY_SILENCE_S = 15.0

Address = SupervisorRecord


@dataclass(frozen=True)
class EngineStatus:
    """What runs on a state directory. ``processes`` includes sandboxes that outlived a supervisor."""

    address: Address | None
    front_answers: bool
    agent_answers: bool
    processes: list[Process]

    @property
    def is_up(self) -> bool:
        """The supervisor lives and both its children answer."""
        return self.address is not None and self.front_answers and self.agent_answers


def status(state: StateDir) -> EngineStatus:
    """Look, and change nothing."""
    record = read_record(state) if is_supervised(state) else None
    return EngineStatus(
        address=record,
        front_answers=record is not None and _silent_front(state, record) is None,
        agent_answers=_agent_answers(state),
        processes=processes_of(state),
    )


def up(
    state: StateDir,
    host: str | None = None,
    port: int | None = None,
    *,
    role: Role = Role.CONTROL,
    beside: Beside | None = None,
    timeout_s: float = START_TIMEOUT_S,
    commands: Commands | None = None,
) -> Address:
    """Make sure Glowplug runs in the background; returns where. ``None`` means 127.0.0.1, 8080.

    Raises Conflict when it already runs somewhere or as something else, or the port is taken; and
    DeadlineExceeded (with the ends of the logs) when what is in front and the agent do not both answer in
    time; what was started is then stopped again.
    """
    deadline = time.monotonic() + timeout_s
    if is_supervised(state):
        record = _await_record(state, deadline)
        _check_same_place(record, host, port, role, beside)
        _await_answers(state, record, deadline, timeout_s)
        return record
    try:
        with launched(state, host, port, commands, foreground=False, role=role, beside=beside) as (
            process,
            record,
        ):
            _await_answers(state, record, deadline, timeout_s)
            process.returncode = 0  # it outlives us on purpose: nothing to wait for
            return record
    except Conflict:
        if not is_supervised(state):
            raise
    # Somebody else's `up` was a moment quicker.
    left_s = max(0.0, deadline - time.monotonic())
    return up(state, host, port, role=role, beside=beside, timeout_s=left_s, commands=commands)


def run_foreground(
    state: StateDir,
    host: str | None = None,
    port: int | None = None,
    *,
    on_ready: Callable[[Address], None],
    role: Role = Role.CONTROL,
    beside: Beside | None = None,
    timeout_s: float = START_TIMEOUT_S,
    commands: Commands | None = None,
) -> int:
    """Like :func:`up`, but stay until it ends; SIGINT and SIGTERM are passed on. Returns its exit code."""
    deadline = time.monotonic() + timeout_s
    if is_supervised(state):
        record = _await_record(state, deadline)
        raise Conflict(
            f"Glowplug already runs in the background at {record.url}.",
            remedy="Use it, or stop it with `glowplug down` first.",
            pid=record.pid,
        )
    with launched(state, host, port, commands, foreground=True, role=role, beside=beside) as (
        process,
        record,
    ):
        _await_answers(state, record, deadline, timeout_s)
        with forwarding_signals(process):
            on_ready(record)
            # Python hands a signal on between two calls: one that came just before a wait without end would
            # be lost until the supervisor ends.
            while not wait_for_exit(process.pid, _LOOK_S):
                continue
            return process.wait()


def down(
    state: StateDir,
    *,
    timeout_s: float = STOP_TIMEOUT_S,
    keep_replicas: bool = False,
    commands: Commands | None = None,
) -> bool:
    """Stop everything; False when nothing ran. With ``keep_replicas`` the next ``up`` adopts them.

    Raises DeadlineExceeded when something still runs at the end.
    """
    deadline = time.monotonic() + timeout_s
    did_run = is_supervised(state)
    if did_run:
        _stop_supervisor(state, signal.SIGTERM if keep_replicas else signal.SIGINT, deadline, timeout_s)
    if keep_replicas:
        return did_run
    left = processes_of(state)
    if left:
        did_run = True
        _clean_up_with_an_agent(state, deadline, commands or Commands())
        end_processes(processes_of(state), signal.SIGTERM, min(5.0, max(0.0, deadline - time.monotonic())))
        end_processes(processes_of(state), signal.SIGKILL, 5.0)
        left = processes_of(state)
    if left:
        raise DeadlineExceeded(
            "Some processes did not end: " + ", ".join(process.describe() for process in left) + ".",
            remedy="Look at the agent's log, then end them with kill -9.",
            stage="stop",
            state=str(state.root),
        )
    remove_memory_folders(state.unsealed)  # of an agent that was killed, and has no successor
    return did_run


def _stop_supervisor(state: StateDir, number: int, deadline: float, timeout_s: float) -> None:
    record = _await_record(state, deadline)
    os.kill(record.pid, number)
    if not wait_for_exit(record.pid, deadline - time.monotonic()):
        raise DeadlineExceeded(
            f"The supervisor (pid {record.pid}) did not stop within {timeout_s:.0f} s.",
            remedy="Run `glowplug down` again: a second request kills what does not stop by itself.",
            stage="stop",
            log=str(state.logs / "supervisor.log"),
        )


def _clean_up_with_an_agent(state: StateDir, deadline: float, commands: Commands) -> None:
    """Sandboxes without an agent: let one adopt and end them properly, with their networks and mounts."""
    contained = contained_pids(state)
    others = [one for one in processes_of(state) if not one.is_runtime and one.pid not in contained]
    end_processes(others, signal.SIGTERM, min(10.0, max(0.0, deadline - time.monotonic())))
    with tempfile.TemporaryFile() as output:
        agent = subprocess.Popen(
            [*commands.agent, "--state", str(state.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while time.monotonic() < deadline and not wait_for_exit(agent.pid, _POLL_S):
                if _agent_answers(state):
                    agent.send_signal(signal.SIGINT)
                    break
            wait_for_exit(agent.pid, deadline - time.monotonic())
        finally:
            agent.kill()
            agent.wait()


def _check_same_place(
    record: Address, host: str | None, port: int | None, role: Role, beside: Beside | None
) -> None:
    if record.role is not role:
        runs = {Role.CONTROL: "the control plane", Role.NODE: "a node of a cluster"}[record.role]
        raise Conflict(
            f"On this state directory {runs} runs already.",
            remedy="Stop it with `glowplug down` first, or use another --state.",
            pid=record.pid,
        )
    is_elsewhere = (host is not None and host != record.host) or port not in (None, 0, record.port)
    if is_elsewhere or not _is_beside(record, beside):
        also = f", and {record.beside}" if record.beside else ""
        raise Conflict(
            f"Glowplug already runs on {record.host}:{record.port}{also}.",
            remedy="Use it there, or stop it with `glowplug down` first.",
            pid=record.pid,
        )


def _is_beside(record: Address, beside: Beside | None) -> bool:
    """Whether what is wanted beside runs there; nothing more may be wanted than runs."""
    wanted_port = "0" if beside is None else beside.listen.rpartition(":")[2]
    return beside is None or (
        record.beside is not None and wanted_port in ("0", record.beside.rpartition(":")[2])
    )


def _await_record(state: StateDir, deadline: float) -> Address:
    """The record of the supervisor that holds ``state``: not one that a killed predecessor left behind."""
    while True:
        record = read_record(state)
        if record is not None and is_supervisor(record.pid, state):
            return record
        if time.monotonic() >= deadline or not is_supervised(state):
            raise Unavailable(
                f"A supervisor holds {state.root} but does not say where it listens.",
                remedy="A start or stop is under way: try again in a moment.",
                log=str(state.logs / "supervisor.log"),
            )
        time.sleep(_POLL_S)


def _await_answers(state: StateDir, record: Address, deadline: float, timeout_s: float) -> None:
    while True:
        silent = _silent_front(state, record) or (None if _agent_answers(state) else "agent")
        if silent is None:
            return
        if wait_for_exit(record.pid, _POLL_S):
            raise _not_started("The supervisor ended while starting.", state, "supervisor")
        if time.monotonic() >= deadline:
            raise _not_started(f"The {silent} did not answer within {timeout_s:.0f} s.", state, silent)


def _not_started(message: str, state: StateDir, name: str) -> GlowplugError:
    log = state.logs / f"{name}.log"
    return DeadlineExceeded(
        message,
        remedy=f"Its log is {log}; `glowplug doctor` checks the machine.",
        stage=f"start of {name}",
        tail=tail(log, _TAIL_LINES),
    )


def _silent_front(state: StateDir, record: Address) -> str | None:
    """The first of what is in front of the agent that does not answer, by the name of its log."""
    if record.role is Role.CONTROL and not _is_healthy(record.url):
        return "control"
    if (record.role is Role.NODE or record.beside is not None) and not _gateway_answers(state, record):
        return "gateway"
    return None if record.router_url is None or _is_healthy(record.router_url) else "router"


def _is_healthy(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/healthz", timeout=_PROBE_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _gateway_answers(state: StateDir, record: Address) -> bool:
    """It lets in nobody but control, not even us; what it counts, it writes down every few seconds."""
    try:
        written_at = state.gateway_metrics.stat().st_mtime
    except FileNotFoundError:
        return False
    return written_at >= max(record.started_at, time.time() - GATEWAY_SILENCE_S)


def _agent_answers(state: StateDir) -> bool:
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(state.agent_socket))) as client:
            return client.get("http://agent/v1/node", timeout=_PROBE_TIMEOUT_S).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
