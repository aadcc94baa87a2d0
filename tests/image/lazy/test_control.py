"""The control socket: hostile lines end at most their own connection."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.lazy.client import DaemonClient
from glowplug.image.lazy.control import MAX_LINE_BYTES, Answer, ControlServer, LineReader, parse_line
from glowplug.image.lazy.orders import pack_order, unpack_order
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, NotFound, Unavailable

PATIENCE_S = 60.0


def _ping(_fields: Mapping[str, Any]) -> Answer:
    return Answer({"pid": 1, "restarts": 0, "uptime_s": 0.0})


def _absent(_fields: Mapping[str, Any]) -> Answer:
    raise NotFound("There is no such image.", remedy="Pull it.", digest="x")


def _broken(_fields: Mapping[str, Any]) -> Answer:
    raise ZeroDivisionError("of all things")


def _descriptor(_fields: Mapping[str, Any]) -> Answer:
    return Answer({"pid": 1}, [0])


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gp-ctl-", dir="/tmp") as folder:
        path = Path(folder) / "control.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(64)
        operations = {
            "ping": _ping, "attach": _absent, "stats": _broken, "take_fd": _descriptor, "trace_get": _ping,
        }  # fmt: skip
        server = ControlServer(listener.detach(), operations, SystemClock())
        server.start()
        yield path
        os.close(server.descriptor)


class Connection:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self._lines = LineReader(self.socket, SystemClock())

    def say(self, data: bytes) -> dict[str, Any] | None:
        self.socket.sendall(data)
        line = self._lines.read(PATIENCE_S, PATIENCE_S)
        return None if line is None else json.loads(line)


PING = b'{"v": 1, "op": "ping"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"nonsense\n",
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b'{"v": 2, "op": "ping"}\n',
        b'{"v": 1}\n',
        b'{"v": 1, "op": 3}\n',
        b'{"v": 1, "op": ["ping"]}\n',
        b'{"v": 1, "op": "nothing we know"}\n',
        b'{"v": 1, "op": "' + b"x" * 100_000 + b'"}\n',
    ],
)
def test_a_line_that_is_no_request_is_answered_with_an_error(path: Path, line: bytes) -> None:
    connection = Connection(path)
    answer = connection.say(line)
    assert answer is not None
    assert answer["error"]["code"] == "invalid_input"
    assert len(json.dumps(answer)) < 1000
    assert connection.say(PING) == {"v": 1, "ok": {"pid": 1, "restarts": 0, "uptime_s": 0.0}}


def test_a_line_without_end_ends_its_connection(path: Path) -> None:
    connection = Connection(path)
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        connection.socket.sendall(b"x" * (2 * MAX_LINE_BYTES))
    assert DaemonClient(path).ping().pid == 1


def test_a_line_that_breaks_off_ends_its_connection(path: Path) -> None:
    connection = Connection(path)
    connection.socket.sendall(PING[:10])
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.socket.recv(100) == b""
    assert DaemonClient(path).ping().pid == 1


def test_several_requests_at_once_are_answered_in_order(path: Path) -> None:
    connection = Connection(path)
    first = connection.say(PING + b'{"v": 1, "op": "stats"}\n' + PING)
    assert first is not None
    assert "ok" in first
    second = connection.say(b"")
    assert second is not None
    assert second["error"]["code"] == "internal"
    third = connection.say(b"")
    assert third is not None
    assert "ok" in third


def test_descriptors_come_with_their_answer(path: Path) -> None:
    connection = Connection(path)
    connection.socket.sendall(b'{"v": 1, "op": "take_fd"}\n')
    answer, descriptors, _, _ = socket.recv_fds(connection.socket, 4096, 2)
    assert json.loads(answer)["ok"] == {"pid": 1}
    assert os.fstat(descriptors[0]) == os.fstat(0)
    os.close(descriptors[0])


def test_errors_arrive_as_they_were_raised(path: Path) -> None:
    client = DaemonClient(path)
    with pytest.raises(NotFound) as raised:
        client.attach("a" * 64)
    assert raised.value.details == {"digest": "x"}
    with pytest.raises(GlowplugError, match="of all things"):
        client.stats()


def test_an_answer_that_lacks_what_it_should_have_is_refused(path: Path) -> None:
    with pytest.raises(InvalidInput):
        DaemonClient(path).trace("a" * 64)


def test_nobody_listening_is_unavailable(path: Path) -> None:
    with pytest.raises(Unavailable):
        DaemonClient(path.parent / "elsewhere.sock").ping()


def test_a_daemon_that_does_not_answer_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="gp-ctl-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{folder}/s")
        listener.listen(1)
        with pytest.raises(DeadlineExceeded):
            DaemonClient(Path(folder) / "s", timeout_s=0.05).ping()


def test_a_line_that_comes_too_slowly_is_given_up() -> None:
    clock = ManualClock()
    ours, theirs = socket.socketpair()

    class Slow:
        """One byte a second, for ever."""

        def settimeout(self, _timeout_s: float) -> None:
            pass

        def recv(self, _size: int) -> bytes:
            clock.advance(1.0)
            return b"x"

    with ours, theirs, pytest.raises(DeadlineExceeded):
        LineReader(Slow(), clock).read(60.0, 10.0)  # type: ignore[arg-type]
    assert clock.monotonic() - ManualClock().monotonic() <= 12


@given(st.binary(max_size=100))
def test_no_line_makes_the_parser_do_anything_but_refuse_it(line: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_line(line)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_an_order_reads_back_as_it_was_sent(order: list[int]) -> None:
    assert list(unpack_order(pack_order(order))) == order


@pytest.mark.parametrize("text", [None, 3, [], "x", "AAA=", "AAAAAAA=", "ä" * 8, "A" * 7])
def test_what_is_no_order_is_refused(text: object) -> None:
    with pytest.raises(InvalidInput):
        unpack_order(text)
