"""up, down and status with a real supervisor and real (stand-in) children."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from glowplug.engine import embedded
from glowplug.engine.processes import processes_of, wait_for_exit
from glowplug.image.lazy.launch import ensure_daemon
from glowplug.types.errors import Conflict, DeadlineExceeded, InvalidInput, SystemUnfit
from glowplug.types.paths import StateDir

from .conftest import eventually, stand_ins


def up(state: StateDir, **options: object) -> embedded.Address:
    return embedded.up(state, port=0, commands=stand_ins(), **options)  # type: ignore[arg-type]


def control_pid(address: embedded.Address, timeout_s: float = 60.0) -> int:
    return int(httpx.get(f"{address.url}/healthz", timeout=timeout_s).text)


def test_up_returns_once_control_and_agent_answer(state: StateDir) -> None:
    address = up(state)
    status = embedded.status(state)
    assert status.is_up
    assert status.address == address
    assert httpx.get(f"{address.url}/healthz").status_code == 200


def test_up_twice_is_one_supervisor(state: StateDir) -> None:
    assert up(state) == up(state)


def test_two_ups_at_once_are_one_supervisor(state: StateDir) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: up(state), range(2))
    assert first == second


def test_up_elsewhere_while_running_is_a_conflict(state: StateDir) -> None:
    address = up(state)
    with pytest.raises(Conflict, match=f"already runs on 127.0.0.1:{address.port}"):
        embedded.up(state, port=address.port + 1, commands=stand_ins())


def test_up_on_a_taken_port_names_who_has_it(state: StateDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(Conflict, match=rf"taken by process {os.getpid()} ") as caught:
            embedded.up(state, port=port, commands=stand_ins())
    assert f"--port {port + 1}" in caught.value.remedy
    assert processes_of(state) == []


def test_up_on_a_foreign_address_is_refused(state: StateDir) -> None:
    with pytest.raises(InvalidInput, match="not an address of this machine"):
        embedded.up(state, host="192.0.2.1", port=0, commands=stand_ins())


def test_up_on_a_state_directory_that_cannot_be_made_says_so(state: StateDir) -> None:
    blocked = state.root / "file"
    blocked.touch()
    with pytest.raises(SystemUnfit, match="cannot be made"):
        up(StateDir(blocked / "below"))


def test_up_shows_the_end_of_the_log_when_control_never_answers(state: StateDir) -> None:
    with pytest.raises(DeadlineExceeded, match="control did not answer within 5 s") as caught:
        embedded.up(state, port=0, timeout_s=5, commands=stand_ins(control=("--crash",)))
    assert "stand-in control: no database here" in caught.value.details["tail"]
    assert processes_of(state) == []
    assert not state.supervisor.exists()


def test_up_shows_the_end_of_the_log_when_the_agent_never_answers(state: StateDir) -> None:
    with pytest.raises(DeadlineExceeded, match="agent did not answer") as caught:
        embedded.up(state, port=0, timeout_s=5, commands=stand_ins(agent=("--mute",)))
    assert "stand-in agent: started" in caught.value.details["tail"]


def test_down_ends_everything_and_the_agent_stops_its_replicas(
    state: StateDir, ask_agent: httpx.Client
) -> None:
    address = up(state)
    sandbox = start_sandbox(ask_agent)
    assert embedded.down(state, commands=stand_ins()) is True
    assert (state.root / "agent-signal").read_text() == "SIGINT"
    assert wait_for_exit(sandbox, 30)
    assert processes_of(state) == []
    assert not state.supervisor.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address.url}/healthz")


def test_down_when_nothing_runs_does_nothing(state: StateDir) -> None:
    assert embedded.down(state) is False


def test_down_keeping_replicas_leaves_sandboxes_for_the_next_up(
    state: StateDir, ask_agent: httpx.Client
) -> None:
    up(state)
    sandbox = start_sandbox(ask_agent)
    embedded.down(state, keep_replicas=True, commands=stand_ins())
    assert (state.root / "agent-signal").read_text() == "SIGTERM"
    assert [process.pid for process in processes_of(state)] == [sandbox]


def test_down_ends_a_blob_daemon_that_outlived_its_agent(state: StateDir) -> None:
    ensure_daemon(state)
    assert processes_of(state) != []
    assert embedded.down(state) is True
    assert processes_of(state) == []
    assert str(state.lazy) not in Path("/proc/self/mounts").read_text()


def test_down_after_the_supervisor_was_killed_has_an_agent_clean_up(
    state: StateDir, ask_agent: httpx.Client
) -> None:
    address = up(state)
    sandbox = start_sandbox(ask_agent)
    os.kill(address.pid, signal.SIGKILL)
    eventually(lambda: not embedded.status(state).agent_answers)
    assert not wait_for_exit(sandbox, 0), "children die with the supervisor, sandboxes do not"
    assert embedded.down(state, commands=stand_ins()) is True
    assert (state.root / "agent-signal").read_text() == "SIGINT"
    assert wait_for_exit(sandbox, 30)


def test_up_after_the_supervisor_was_killed_starts_a_new_one(state: StateDir) -> None:
    first = up(state)
    os.kill(first.pid, signal.SIGKILL)
    assert wait_for_exit(first.pid, 60)
    second = up(state)
    assert second.pid != first.pid
    assert embedded.status(state).is_up


def test_connections_wait_while_a_killed_control_restarts(state: StateDir) -> None:
    address = up(state)
    killed = control_pid(address)
    for _ in range(3):
        os.kill(killed, signal.SIGKILL)
        with ThreadPoolExecutor(20) as pool:
            answers = set(pool.map(lambda _: control_pid(address), range(20)))
        assert killed not in answers
        killed = answers.pop()


def test_a_killed_agent_is_started_again(state: StateDir, ask_agent: httpx.Client) -> None:
    up(state)
    first = ask_agent.get("/v1/node").json()["agent_pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: embedded.status(state).agent_answers)
    assert ask_agent.get("/v1/node").json()["agent_pid"] != first


def test_the_exit_code_of_a_sandbox_whose_agent_died_is_noted(
    state: StateDir, ask_agent: httpx.Client
) -> None:
    up(state)
    code = "import signal, sys; signal.sigwait([signal.SIGUSR1]); sys.exit(7)"
    answer = ask_agent.get("/sandbox", params={"code": code}).json()
    sandbox = answer["sandbox_pid"]
    os.kill(answer["agent_pid"], signal.SIGKILL)
    eventually(lambda: parent_of(sandbox) == embedded.status(state).address.pid)  # type: ignore[union-attr]
    eventually(lambda: embedded.status(state).agent_answers)
    os.kill(sandbox, signal.SIGUSR1)
    note = state.exits / str(sandbox)
    eventually(note.exists)
    content = json.loads(note.read_text())
    # SIGUSR1 is either awaited (7) or, before the interpreter got there, deadly: both are told apart.
    assert content["pid"] == sandbox
    assert (content["exit_code"], content["signal"]) in [(7, None), (None, signal.SIGUSR1)]
    assert content["at"] > 0


def test_logs_of_the_children_are_captured(state: StateDir) -> None:
    up(state)
    eventually(lambda: "stand-in control: serving" in (state.logs / "control.log").read_text())
    eventually(lambda: "stand-in agent: started" in (state.logs / "agent.log").read_text())


def test_a_child_that_ignores_being_stopped_is_killed_at_the_second_request(state: StateDir) -> None:
    commands = stand_ins(agent=("--stubborn",))
    embedded.up(state, port=0, commands=commands)
    with pytest.raises(DeadlineExceeded, match="did not stop within 1 s"):
        embedded.down(state, timeout_s=1, commands=commands)
    embedded.down(state, timeout_s=60, commands=commands)
    assert processes_of(state) == []


@contextmanager
def in_foreground(state: StateDir) -> Iterator[subprocess.Popen[bytes]]:
    script = (
        "import shlex, sys; from pathlib import Path; from glowplug.engine import embedded\n"
        "from glowplug.engine.launch import Commands; from glowplug.types.paths import StateDir\n"
        "commands = Commands(agent=shlex.split(sys.argv[2]), control=shlex.split(sys.argv[3]))\n"
        "sys.exit(embedded.run_foreground(StateDir(Path(sys.argv[1])), port=0, commands=commands,\n"
        "    on_ready=lambda address: print(address.url, flush=True)))"
    )
    agent, control = shlex.join(stand_ins().agent), shlex.join(stand_ins().control)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(state.root), agent, control],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        yield process


@pytest.mark.parametrize(
    ("sent", "received"), [("SIGINT", b"SIGINT"), ("SIGTERM", b"SIGTERM"), ("SIGHUP", b"SIGTERM")]
)
def test_foreground_ends_in_order_at_a_signal(state: StateDir, sent: str, received: bytes) -> None:
    with in_foreground(state) as process:
        process.send_signal(signal.Signals[sent])
        assert process.wait(90) == 0
        assert process.stderr is not None
        assert b"stand-in agent: " + received in process.stderr.read()
    assert processes_of(state) == []


def test_nothing_outlives_a_foreground_that_was_killed(state: StateDir) -> None:
    with in_foreground(state) as process:
        process.kill()
        process.wait(60)
        eventually(lambda: processes_of(state) == [])


def start_sandbox(ask_agent: httpx.Client) -> int:
    code = "import threading; threading.Event().wait()"
    return int(ask_agent.get("/sandbox", params={"code": code}).json()["sandbox_pid"])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
