"""Calling a deployed function from Python: results, errors and deadlines, over real HTTP."""

from __future__ import annotations

import gc
import importlib.util
import json
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ports import free_port

import glowplug as gp
from glowplug.types.errors import (
    DeadlineExceeded,
    GlowplugError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
)

from .conftest import patient
from .runner_process import RunnerProcess
from .scripted_server import ScriptedServer, StandInRouter

SOURCE = '''
import time
import glowplug as gp

app = gp.App("test")


@app.cls()
class Service:
    @gp.method()
    def echo(self, value, *, twice: bool = False, **more):
        """Give it back."""
        return [value, more] * (2 if twice else 1)

    @gp.method()
    def fail(self, text: str):
        raise LookupError(text)

    @gp.method()
    def count(self, to: int, pause_s: float = 0.0, fail_at: int = -1):
        for number in range(to):
            if number == fail_at:
                raise LookupError("in the middle")
            yield number
            time.sleep(pause_s)

    @gp.method()
    async def double(self, value: int) -> int:
        return 2 * value
'''


@pytest.fixture(scope="module")
def module(container_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The user's module, imported here, with its class deployed in a real runner behind a router."""
    file = tmp_path_factory.mktemp("remote") / "remote_app.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("remote_app", file)
    assert spec is not None
    assert spec.loader is not None
    user_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(user_module)
    with RunnerProcess(container_library, file, "Service") as runner:
        runner.wait_ready().activate()
        with StandInRouter(runner.port) as router, pytest.MonkeyPatch.context() as patch:
            patch.setenv("GLOWPLUG_URL", router.url)
            yield user_module


text = st.text()
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | floats | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@patient
@given(value=json_values)
def test_any_json_value_goes_there_and_back(module: ModuleType, value: Any) -> None:
    assert module.Service().echo.remote(value) == [value, {}]


def test_arguments_are_bound_by_position_and_name(module: ModuleType) -> None:
    assert module.Service().echo.remote(1, twice=True, extra=2) == [1, {"extra": 2}] * 2
    assert module.Service.echo.remote(value=1) == [1, {}]
    assert module.Service().echo(1) == [1, {}]


def test_async_methods_return_their_result(module: ModuleType) -> None:
    assert module.Service().double.remote(21) == 42


def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    class Service:
        @gp.method()
        def add(self, a: int, b: int = 1) -> int:
            return a + b

    gp.App("a").cls()(Service)
    add = Service().add.options(url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InvalidInput) as caught:
        add.remote(c=3)  # type: ignore[call-arg]
    assert "add(a: 'int', b: 'int' = 1)" in caught.value.remedy
    with pytest.raises(InvalidInput, match="cannot be sent as JSON"):
        add.remote({1, 2})  # type: ignore[arg-type]


def test_what_the_remote_code_raised_arrives_with_its_traceback(module: ModuleType) -> None:
    with pytest.raises(gp.RemoteError, match="LookupError: what is lost") as caught:
        module.Service().fail.remote("what is lost")
    assert caught.value.remote_type == "LookupError"
    assert "in fail" in caught.value.remote_traceback
    assert isinstance(caught.value, GlowplugError)
    assert "raise LookupError(text)" in "".join(traceback.format_exception(caught.value))


def test_a_generators_results_arrive_one_by_one(module: ModuleType) -> None:
    started_s = time.monotonic()
    results = module.Service().count.remote(3, pause_s=30.0)
    assert next(results) == 0
    assert time.monotonic() - started_s < 20
    results.close()
    assert list(module.Service().count.remote(3)) == [0, 1, 2]
    assert list(module.Service().count.remote(0)) == []


def test_a_stream_that_fails_raises_where_it_failed(module: ModuleType) -> None:
    results = module.Service().count.remote(3, fail_at=1)
    assert next(results) == 0
    with pytest.raises(gp.RemoteError, match="in the middle"):
        next(results)


def test_a_stream_nobody_reads_gives_its_connection_back(module: ModuleType) -> None:
    with module.Service().count.remote(1000) as results:
        assert next(results) == 0
    assert results._exchange._connection.sock is None
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        module.Service().count.remote(1000)
        gc.collect()
    assert not caught


def test_map_keeps_the_order_and_runs_side_by_side(module: ModuleType) -> None:
    assert list(module.Service().double.map(range(50), concurrency=8)) == [2 * n for n in range(50)]
    assert list(module.Service().count.map([1, 2], concurrency=2)) == [[0], [0, 1]]


def test_map_reads_only_as_far_ahead_as_it_works(module: ModuleType) -> None:
    read = []

    def items() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = module.Service().double.map(items(), concurrency=2)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert len(read) <= 3 + 2 * 2
    results.close()


def test_map_ends_with_the_first_error(module: ModuleType) -> None:
    with pytest.raises(gp.RemoteError, match="LookupError: a"):
        list(module.Service().fail.map(["a", "b", "c"]))
    for concurrency in (0, 5000, True, "8"):
        with pytest.raises(InvalidInput):
            module.Service().double.map([1], concurrency=concurrency)


@gp.App("hello").function()
def greet(name: str) -> str:
    return f"Hello, {name}!"


def test_a_refused_connection_says_how_to_start() -> None:
    with pytest.raises(Unavailable, match="Nothing listens") as caught:
        greet.options(url=f"http://127.0.0.1:{free_port()}").remote("Ada")
    assert "glowplug up" in caught.value.remedy


def test_an_answer_that_never_comes_ends_at_the_deadline() -> None:
    with ScriptedServer(None) as server, pytest.raises(DeadlineExceeded, match=r"within 0\.2 s") as caught:
        greet.options(url=server.url, deadline_s=0.2).remote("Ada")
    assert caught.value.details["stage"] == "remote_call"


def answer(
    status: int, body: bytes, headers: bytes = b"Content-Type: application/json\r\n", length: int = -1
) -> bytes:
    size = len(body) if length < 0 else length
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n%b" % (status, size, headers, body)


def ask(reply: bytes) -> Any:
    with ScriptedServer(reply) as server:
        return greet.options(url=server.url, deadline_s=60).remote("Ada")


def test_the_routers_own_errors_arrive_typed() -> None:
    overloaded = Overloaded("The queue is full.", remedy="Wait.", retry_after_s=3)
    with pytest.raises(Overloaded, match="The queue is full") as caught:
        ask(answer(429, json.dumps(overloaded.to_dict()).encode()))
    assert caught.value.details == {"retry_after_s": 3}
    with pytest.raises(NotFound):
        ask(answer(404, json.dumps(NotFound("no app").to_dict()).encode()))


def test_an_error_from_a_call_within_a_call_stays_a_remote_error() -> None:
    nested = gp.RemoteError("ValueError: deep", type="ValueError", traceback="Traceback: deep")
    with pytest.raises(gp.RemoteError, match="ValueError: deep") as caught:
        ask(answer(500, json.dumps(nested.to_dict()).encode()))
    assert caught.value.message == "ValueError: deep"
    assert (caught.value.remote_type, caught.value.remote_traceback) == ("ValueError", "Traceback: deep")


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, b"<html>"),
        answer(200, b""),
        answer(200, b"[" * 100_000),
        answer(502, b"Bad Gateway", b"Content-Type: text/plain\r\n"),
        answer(200, b'{"answer": 1}'),
        answer(204, b""),
    ],
)
def test_an_answer_of_something_else_is_named_as_such(reply: bytes) -> None:
    with pytest.raises(gp.RemoteError, match="something other than a result"):
        ask(reply)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n\r\n",
        answer(200, b'{"result": 1}', length=100),
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"res',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_an_answer_cut_short_is_never_taken_for_a_result(reply: bytes) -> None:
    with pytest.raises(Unavailable):
        ask(reply)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_stream_that_does_not_say_where_it_ends_is_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
    with ScriptedServer(head + b'{"result": 1}\n') as server:
        results = greet.options(url=server.url, deadline_s=60).remote("Ada")
        with pytest.raises(Unavailable, match="where it ends"):
            next(results)


def test_a_stream_cut_short_is_never_taken_for_its_end() -> None:
    with ScriptedServer(STREAM_HEAD + b'e\r\n{"result": 1}\n\r\n') as server:
        results = greet.options(url=server.url, deadline_s=60).remote("Ada")
        assert next(results) == 1
        with pytest.raises(Unavailable):
            next(results)


def test_a_stream_that_stalls_ends_at_the_deadline_of_its_next_item() -> None:
    stalled = threading.Event()

    class Stalling(ScriptedServer):
        def _serve(self, connection: Any) -> None:
            with connection:
                connection.recv(1 << 16)
                connection.sendall(STREAM_HEAD + b'e\r\n{"result": 1}\n\r\n')
                stalled.wait(60)

    with Stalling(None) as server:
        results = greet.options(url=server.url, deadline_s=5).remote("Ada")
        assert next(results) == 1
        with pytest.raises(DeadlineExceeded):
            next(results)
        stalled.set()


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://[::1", "http://x:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    if url:
        with pytest.raises(InvalidInput, match="not the address of a router"):
            greet.options(url=url).remote("Ada")
    for deadline_s in (0, -1, float("inf"), float("nan"), "1"):
        with pytest.raises(InvalidInput):
            greet.options(deadline_s=deadline_s)  # type: ignore[arg-type]
