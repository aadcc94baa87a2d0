"""Looking into a running replica: commands, terminals, logs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.sandboxes import eventually
from websockets.sync.client import ClientConnection, unix_connect

pytestmark = pytest.mark.sandbox

Result = tuple[bytes, bytes, Any]


@contextlib.contextmanager
def _exec(agent: LiveAgent, replica_id: str, *command: str, **query: Any) -> Iterator[ClientConnection]:
    pairs = [*(("command", word) for word in command), *((name, str(v)) for name, v in query.items())]
    uri = f"ws://agent/v1/replicas/{replica_id}/exec?{urlencode(pairs)}"
    with unix_connect(str(agent.state.agent_socket), uri, open_timeout=60, close_timeout=2) as socket:
        yield socket


def _to_the_end(socket: ClientConnection) -> Result:
    """stdout, stderr and the last message."""
    streams = {1: b"", 2: b""}
    while True:
        frame = socket.recv(timeout=120)
        if isinstance(frame, str):
            return streams[1], streams[2], json.loads(frame)
        streams[frame[0]] += frame[1:]


def _read_until(socket: ClientConnection, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        frame = socket.recv(timeout=120)
        assert isinstance(frame, bytes), f"{frame!r} after {seen!r}"
        seen += frame[1:]
    return seen


@pytest.fixture
def replica(agent: LiveAgent) -> dict[str, Any]:
    return agent.start(agent.server())


def _processes(agent: LiveAgent, view: dict[str, Any]) -> str:
    with _exec(agent, view["id"], "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '") as socket:
        return _to_the_end(socket)[0].decode()


def test_stdout_stderr_and_the_exit_code_come_apart(agent: LiveAgent, replica: dict[str, Any]) -> None:
    with _exec(agent, replica["id"], "sh", "-c", "echo out; echo err >&2; exit 3") as socket:
        assert _to_the_end(socket) == (b"out\n", b"err\n", {"type": "exit", "code": 3})


def test_stdin_is_passed_and_can_be_ended(agent: LiveAgent, replica: dict[str, Any]) -> None:
    with _exec(agent, replica["id"], "sha256sum") as socket:
        socket.send(b"x" * 300_000)
        socket.send(json.dumps({"type": "eof"}))
        out, _err, last = _to_the_end(socket)
    assert last == {"type": "exit", "code": 0}
    assert out.decode().split()[0] == hashlib.sha256(b"x" * 300_000).hexdigest()


def test_a_terminal_has_a_size_that_can_change(agent: LiveAgent, replica: dict[str, Any]) -> None:
    with _exec(agent, replica["id"], "sh", tty=1, rows=30, cols=100) as socket:
        socket.send(b"stty size; echo $TERM; tty\n")
        seen = _read_until(socket, b"xterm-256color")
        assert b"30 100" in seen
        socket.send(json.dumps({"type": "resize", "rows": 50, "cols": 120}))
        socket.send(b"stty size\n")
        _read_until(socket, b"50 120")
        socket.send(b"exit 5\n")
        assert _to_the_end(socket)[2] == {"type": "exit", "code": 5}


def test_control_c_reaches_the_process_in_a_terminal(agent: LiveAgent, replica: dict[str, Any]) -> None:
    with _exec(agent, replica["id"], "sh", tty=1) as socket:
        socket.send(b"echo be''fore; sleep 1000; echo af''ter\n")
        _read_until(socket, b"before")
        eventually(lambda: "sleep 1000" in _processes(agent, replica))
        socket.send(b"\x03")
        socket.send(b"echo do''ne\n")
        _read_until(socket, b"done")


@pytest.mark.parametrize("tty", [0, 1])
def test_when_the_client_leaves_what_it_started_ends(
    agent: LiveAgent, replica: dict[str, Any], tty: int
) -> None:
    with _exec(agent, replica["id"], "sh", "-c", "echo go; exec sleep 4321", tty=tty) as socket:
        _read_until(socket, b"go")
        assert "sleep 4321" in eventually(lambda: _processes(agent, replica))
    eventually(lambda: "sleep 4321" not in _processes(agent, replica), "it is gone inside, too")
    execs = agent.state.replicas / replica["id"] / "execs"
    eventually(lambda: not list(execs.iterdir()), "its pid is forgotten")


def test_many_quiet_terminals_do_not_keep_others_waiting(agent: LiveAgent, replica: dict[str, Any]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(_exec(agent, replica["id"], "cat", tty=1))
        assert agent.client.get("/v1/snapshots").status_code == 200
        assert agent.client.get(f"/v1/replicas/{replica['id']}/logs").status_code == 200


@pytest.mark.parametrize("text", ["no json", "[]", '{"type": "unknown"}', '{"type": "resize", "rows": "x"}'])
def test_what_is_no_message_of_ours_ends_the_session_with_an_error(
    agent: LiveAgent, replica: dict[str, Any], text: str
) -> None:
    with _exec(agent, replica["id"], "cat") as socket:
        socket.send(text)
        last = _to_the_end(socket)[2]
    assert last["type"] == "error"
    assert last["error"]["code"] == "invalid_input"


def test_a_command_that_does_not_exist_is_told_on_stderr(agent: LiveAgent, replica: dict[str, Any]) -> None:
    with _exec(agent, replica["id"], "no-such-program") as socket:
        _out, err, last = _to_the_end(socket)
    assert b"no-such-program" in err
    assert last["type"] == "exit"
    assert last["code"] != 0


def test_nothing_can_be_run_in_what_is_not_there(agent: LiveAgent, replica: dict[str, Any]) -> None:
    agent.stop(replica["id"], grace_s=0)
    for replica_id, code in ((replica["id"], "conflict"), ("nobody", "not_found")):
        with _exec(agent, replica_id, "true") as socket:
            assert _to_the_end(socket)[2]["error"]["code"] == code


def test_an_exec_that_lost_its_agent_is_ended_by_the_next(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server())
    with (
        contextlib.suppress(Exception),
        _exec(own_agent, view["id"], "sh", "-c", "echo go; exec sleep 4322") as socket,
    ):
        _read_until(socket, b"go")
        own_agent.kill()
    own_agent.start_again()
    eventually(lambda: "sleep 4322" not in _processes(own_agent, view), "it is gone inside")
    assert own_agent.ask(view) == "hello"


def test_logs_are_read_from_their_end(agent: LiveAgent, replica: dict[str, Any]) -> None:
    for number in range(5):
        agent.ask(replica, f"/say?text=line-{number}")
    logs = f"/v1/replicas/{replica['id']}/logs"
    assert agent.client.get(f"{logs}?tail=2").text == "line-3\nline-4\n"
    assert agent.client.get(f"{logs}?tail=0").text == ""
    assert agent.client.get(logs).text.startswith("listening\nline-0\n")


def test_logs_are_followed_until_the_replica_ends_and_can_be_read_afterwards(
    agent: LiveAgent, replica: dict[str, Any]
) -> None:
    logs = f"/v1/replicas/{replica['id']}/logs"
    with agent.client.stream("GET", f"{logs}?tail=1&follow=1") as answer:
        pieces = answer.iter_text()
        seen = next(pieces)
        agent.ask(replica, "/say?text=while-followed")
        while "while-followed" not in seen:
            seen += next(pieces)
        agent.client.post(f"/v1/replicas/{replica['id']}/stop?grace_s=0")
        assert list(pieces) is not None, "the stream ends"
    assert seen == "listening\nwhile-followed\n"
    agent.until(replica["id"], "stopped")
    assert "while-followed" in agent.client.get(logs).text


def test_a_log_survives_being_emptied_while_it_is_written(agent: LiveAgent, replica: dict[str, Any]) -> None:
    from glowplug.node.logs import rotate

    log = agent.state.replica_logs / f"{replica['id']}.log"
    agent.ask(replica, "/say?text=before")
    assert rotate(log, max_bytes=4)
    agent.ask(replica, "/say?text=after")
    assert log.read_text() == "after\n"
    assert "before" in Path(f"{log}.1").read_text()
