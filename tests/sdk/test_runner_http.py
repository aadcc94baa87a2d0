"""The runner's HTTP, byte by byte: keep-alive, framing, limits, and hostile requests."""

from __future__ import annotations

import json
import socket
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.sdk.runner_http import Handler, Server

from .conftest import patient
from .runner_process import RunnerProcess

SOURCE = """
    import glowplug as gp

    class Echo:
        @gp.method()
        def size(self, text: str) -> int:
            return len(text)

        @gp.method()
        def letters(self, text: str):
            yield from text
"""
LIMIT_BYTES = 64 << 20


@pytest.fixture(scope="module")
def runner(container_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    file = tmp_path_factory.mktemp("echo") / "echo_app.py"
    file.write_text(textwrap.dedent(SOURCE))
    with RunnerProcess(container_library, file, "Echo") as process:
        process.wait_ready().activate()
        yield process


def exchange(runner: RunnerProcess, request: bytes) -> bytes:
    """Send these bytes, say no more, and read until the other side has finished."""
    with socket.create_connection(("127.0.0.1", runner.port), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer


def post(headers: bytes, body: bytes, path: bytes = b"/size") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def test_one_connection_serves_many_requests(runner: RunnerProcess) -> None:
    connection = runner.connect()
    sockets = set()
    for length in (1, 1000, 0):
        connection.request("POST", "/size", json.dumps({"text": "x" * length}))
        response = connection.getresponse()
        assert json.loads(response.read()) == {"result": length}
        sockets.add(connection.sock)
    connection.request("POST", "/nothing")
    assert connection.getresponse().read()
    connection.request("POST", "/letters", '{"text": "ab"}')
    assert connection.getresponse().read() == b'{"result": "a"}\n{"result": "b"}\n'
    connection.request("POST", "/size", '{"text": "x"}')
    assert connection.getresponse().status == 200
    assert sockets == {connection.sock}
    connection.close()


def test_an_answer_arrives_in_one_piece(runner: RunnerProcess) -> None:
    with socket.create_connection(("127.0.0.1", runner.port), timeout=60) as connection:
        for _ in range(20):
            connection.sendall(post(b"Content-Length: 13\r\n", b'{"text": "x"}'))
            head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert body == b'{"result": 1}'


def test_small_answers_are_not_held_back(runner: RunnerProcess) -> None:
    connection = runner.connect()

    def takes_s() -> float:
        started_s = time.perf_counter()
        connection.request("POST", "/size", '{"text": "x"}')
        connection.getresponse().read()
        return time.perf_counter() - started_s

    # Nagle's algorithm against delayed acknowledgements would cost 40 ms each time, a busy machine sometimes.
    assert any(takes_s() < 0.02 for _ in range(300))
    connection.close()


def test_letting_go_reaches_connections_whose_answer_is_only_just_out() -> None:
    class Slow(Handler):
        def answer(self) -> None:
            if self.path == "/others":
                self.server.close_others()
            self.send_json(200, {})
            time.sleep(0.3)

    with Server(("127.0.0.1", 0), Slow) as server:
        server.start()
        port = server.server_address[1]
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as idle,
            socket.create_connection(("127.0.0.1", port), timeout=60) as asking,
        ):
            idle.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while b"{}" not in idle.recv(1 << 16, socket.MSG_PEEK):
                pass
            asking.sendall(b"GET /others HTTP/1.1\r\n\r\n")
            assert asking.recv(1 << 16).startswith(b"HTTP/1.1 200")
            while idle.recv(1 << 16):
                pass
        server.shutdown()


def test_chunked_bodies_are_read(runner: RunnerProcess) -> None:
    body = b'5\r\n{"tex\r\n8;ext=1\r\nt": "x"}\r\n0\r\nTrailer: y\r\n\r\n'
    answer = exchange(runner, post(b"Transfer-Encoding: chunked\r\n", body))
    assert answer.endswith(b'{"result": 1}')


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"),
        (b"Content-Length: -1\r\n", b"{}"),
        (b"Content-Length: +2\r\n", b"{}"),
        (b"Content-Length: 0x2\r\n", b"{}"),
        (b"Content-Length: 1000\r\n", b"{}"),
        (b"Transfer-Encoding: chunked\r\n", b"0x1\r\nx\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-1\r\nx\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nxy\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nab"),
        (b"Transfer-Encoding: chunked\r\n", b"0\r\n" + b"a: b\r\n" * 200),
    ],
)
def test_a_body_without_a_clear_end_is_refused_and_ends_the_connection(
    runner: RunnerProcess, headers: bytes, body: bytes
) -> None:
    answer = exchange(runner, post(headers, body) + post(b"Content-Length: 0\r\n", b"", b"/smuggled"))
    head, _, error = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in head
    assert json.loads(error)["code"] == "invalid_input"


@pytest.mark.parametrize(
    "request_bytes",
    [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 70_000],
)
def test_what_is_not_http_is_answered_in_json(runner: RunnerProcess, request_bytes: bytes) -> None:
    head, _, body = exchange(runner, request_bytes).partition(b"\r\n\r\n")
    assert 400 <= int(head.split()[1]) < 600
    assert json.loads(body)["code"] == "invalid_input"


@patient
@given(noise=st.binary(max_size=300))
def test_no_bytes_bring_it_down(runner: RunnerProcess, noise: bytes) -> None:
    exchange(runner, noise)
    exchange(runner, post(b"Content-Length: %d\r\n" % len(noise), noise))
    exchange(runner, post(b"Transfer-Encoding: chunked\r\n", noise))
    assert runner.call("size", text="x") == (200, {"result": 1})
    assert "Traceback" not in runner.log


def test_a_body_at_the_limit_is_taken(runner: RunnerProcess) -> None:
    text = "x" * (LIMIT_BYTES - len('{"text": ""}'))
    assert runner.call("size", text=text) == (200, {"result": len(text)})


def test_a_body_over_the_limit_is_refused_with_413_though_the_caller_sends_on(runner: RunnerProcess) -> None:
    status, error = runner.ask("POST", "/size", raw=b"x" * (LIMIT_BYTES + 1))
    assert (status, error["code"], error["details"]["max_bytes"]) == (413, "invalid_input", LIMIT_BYTES)


@pytest.mark.parametrize("length", [b"99999999999999", b"0" * 30 + b"99999999999999", b"9" * 4000])
def test_an_announced_flood_is_refused_before_it_is_sent(runner: RunnerProcess, length: bytes) -> None:
    headers = b"Expect: 100-continue\r\nContent-Length: " + length + b"\r\n"
    assert exchange(runner, post(headers, b"")).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_flood_is_cut_off(runner: RunnerProcess) -> None:
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    answer = exchange(runner, post(b"Transfer-Encoding: chunked\r\n", chunk * 65))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_first_is_told_to_go_on(runner: RunnerProcess) -> None:
    with socket.create_connection(("127.0.0.1", runner.port), timeout=60) as connection:
        connection.sendall(post(b"Expect: 100-continue\r\nContent-Length: 13\r\n", b""))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(b'{"text": "x"}')
        assert connection.recv(1 << 16).endswith(b'{"result": 1}')


def test_http_1_0_gets_an_answer_that_ends_with_the_connection(runner: RunnerProcess) -> None:
    body = b'{"text": "ab"}'
    request = b"POST /letters HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    head, _, lines = exchange(runner, request).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert lines == b'{"result": "a"}\n{"result": "b"}\n'


def test_a_hundred_connections_at_once_are_all_answered(runner: RunnerProcess) -> None:
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda index: runner.call("size", text="x" * index), range(300)))
    assert answers == [(200, {"result": index}) for index in range(300)]
