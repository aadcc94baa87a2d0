"""The runner as a process: what callers get, from start to SIGTERM."""

from __future__ import annotations

import http.client
import json
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port

from .conftest import StartRunner
from .runner_process import RunnerProcess

APP = """
    import asyncio, os, sys, time
    import glowplug as gp

    app = gp.App("test")

    @app.cls()
    class Service:
        def __init__(self):
            self.events = ["made"]

        @gp.enter(snap=True)
        def load(self):
            self.events.append("load")

        @gp.enter(snap=False)
        async def connect(self):
            self.events.append("connect")
            self.loop = asyncio.get_running_loop()

        @gp.exit()
        def leave(self):
            print("left with", self.events, flush=True)

        @gp.method()
        def add(self, a: int, b: int = 1) -> int:
            return a + b

        @gp.method()
        def anything(self, **values):
            return values

        @gp.method()
        def get_events(self):
            return self.events

        @gp.method()
        async def wait(self, seconds: float) -> bool:
            await asyncio.sleep(seconds)
            return asyncio.get_running_loop() is self.loop

        @gp.method()
        def fail(self, kind: str):
            if kind == "exit":
                sys.exit(7)
            if kind == "mute":
                raise type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})()
            raise ValueError(f"no such {kind}: \\u00e9")

        @gp.method()
        def odd(self, kind: str):
            loop = []
            loop.append(loop)
            deep = []
            for _ in range(100_000):
                deep = [deep]
            odd = {"set": {1}, "nan": float("nan"), "loop": loop, "bytes": b"", "surrogate": "\\ud800"}
            return {**odd, "deep": deep}[kind]

        @gp.method()
        def count(self, to: int, fail_at: int = -1, odd_at: int = -1):
            try:
                for number in range(to):
                    if number == fail_at:
                        raise KeyError(number)
                    yield {1} if number == odd_at else number
            finally:
                self.events.append("count ended")

        @gp.method()
        async def count_slowly(self, to: int):
            try:
                for number in range(to):
                    await asyncio.sleep(0)
                    yield number
            finally:
                self.events.append("slow count ended")

        @gp.method()
        def flood(self):
            try:
                while True:
                    yield "x" * 100_000
            finally:
                self.events.append("flood ended")

        @gp.method()
        def block(self, name: str):
            print("blocking", flush=True)
            while not os.path.exists(name):
                time.sleep(0.01)
            return "released"

    @app.function()
    def greet(name: str = "world") -> str:
        return f"Hello, {name}!"

    def plain(x):
        return x
"""


@pytest.fixture(scope="module")
def service(container_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    """One activated runner for the tests that only ask."""
    file = tmp_path_factory.mktemp("service") / "user_app.py"
    file.write_text(textwrap.dedent(APP))
    with RunnerProcess(container_library, file, "Service") as runner:
        runner.wait_ready().activate()
        yield runner


def read_lines(runner: RunnerProcess, method: str, **arguments: Any) -> list[Any]:
    connection = runner.connect()
    try:
        connection.request("POST", f"/{method}", json.dumps(arguments))
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("Content-Type") == "application/x-ndjson"
        assert response.getheader("Transfer-Encoding") == "chunked"
        return [json.loads(line) for line in response.read().splitlines()]
    finally:
        connection.close()


def test_named_arguments_go_in_and_a_result_comes_out(service: RunnerProcess) -> None:
    assert service.call("add", a=1, b=2) == (200, {"result": 3})
    assert service.call("add", a=1) == (200, {"result": 2})
    assert service.call("anything", x=[1, {"y": "é"}]) == (200, {"result": {"x": [1, {"y": "é"}]}})


def test_wrong_arguments_are_refused_with_the_signature(service: RunnerProcess) -> None:
    for arguments in ({}, {"a": 1, "c": 2}, {"self": 1, "a": 1}):
        status, error = service.ask("POST", "/add", arguments)
        assert (status, error["code"]) == (400, "invalid_input")
        assert "add(a: int, b: int = 1) -> int" in error["remedy"].replace("'", "")


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b'"a"', b"\xff", b"nul", b"[" * 100_000, b"1" * 5000, b'{"a": \xed\xa0\x80}']
)
def test_a_body_that_is_no_json_object_is_refused(service: RunnerProcess, body: bytes) -> None:
    status, error = service.ask("POST", "/add", raw=body)
    assert (status, error["code"]) == (400, "invalid_input")
    assert "JSON object" in error["remedy"]


def test_an_exception_is_a_500_with_its_traceback_and_a_line_in_the_log(service: RunnerProcess) -> None:
    status, answer = service.call("fail", kind="text")
    error = answer["error"]
    assert (status, error["type"], error["message"]) == (500, "ValueError", "no such text: é")
    assert "user_app.py" in error["traceback"]
    assert "runner_routes.py" not in error["traceback"]
    assert "ValueError: no such text: é" in service.log


def test_an_exception_that_cannot_be_shown_is_still_reported(service: RunnerProcess) -> None:
    status, answer = service.call("fail", kind="mute")
    assert (status, answer["error"]["type"]) == (500, "Mute")


def test_code_that_exits_fails_its_call_only(service: RunnerProcess) -> None:
    status, answer = service.call("fail", kind="exit")
    assert (status, answer["error"]["type"], answer["error"]["message"]) == (500, "SystemExit", "7")
    assert service.call("add", a=1)[0] == 200


@pytest.mark.parametrize("kind", ["set", "nan", "loop", "bytes", "surrogate", "deep"])
def test_a_result_that_is_not_json_is_a_typed_500(service: RunnerProcess, kind: str) -> None:
    status, answer = service.call("odd", kind=kind)
    assert (status, answer["error"]["type"]) == (500, "UnserialisableResult")
    assert "odd returned" in answer["error"]["message"]


def test_a_generator_streams_its_results_as_lines(service: RunnerProcess) -> None:
    assert read_lines(service, "count", to=3) == [{"result": 0}, {"result": 1}, {"result": 2}]
    assert read_lines(service, "count_slowly", to=2) == [{"result": 0}, {"result": 1}]
    assert read_lines(service, "count", to=0) == []


def test_a_generator_that_fails_at_once_is_a_500(service: RunnerProcess) -> None:
    status, answer = service.call("count", to=3, fail_at=0)
    assert (status, answer["error"]["type"]) == (500, "KeyError")
    status, answer = service.call("count", to=3, odd_at=0)
    assert (status, answer["error"]["type"]) == (500, "UnserialisableResult")


def test_a_generator_that_fails_later_ends_with_the_error(service: RunnerProcess) -> None:
    first, last = read_lines(service, "count", to=3, fail_at=1)
    assert (first, last["error"]["type"]) == ({"result": 0}, "KeyError")
    first, last = read_lines(service, "count", to=3, odd_at=1)
    assert (first, last["error"]["type"]) == ({"result": 0}, "UnserialisableResult")


def test_a_generator_ends_when_its_reader_goes_away(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready().activate()
        connection = runner.connect()
        connection.request("POST", "/flood", "{}")
        connection.getresponse().read(10)
        connection.sock.close()
        connection.close()
        wait_for(lambda: "flood ended" in runner.call("get_events")[1]["result"])


def test_async_methods_share_one_loop_and_run_side_by_side(service: RunnerProcess) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.call("wait", seconds=0.05), range(20)))
    assert answers == [(200, {"result": True})] * 20


def test_unknown_methods_and_verbs_say_what_exists(service: RunnerProcess) -> None:
    status, error = service.call("nothing")
    assert (status, error["code"]) == (404, "not_found")
    assert "add, anything" in error["remedy"]
    for path in ("/__init__", "/load", "/events", "/"):
        assert service.ask("POST", path)[0] == 404
    assert service.ask("GET", "/add")[0] == 405
    assert service.ask("POST", "/.glowplug/ready")[0] == 405
    assert service.ask("GET", "/.glowplug/nothing")[0] == 404


def test_a_function_has_the_one_method_call(start_runner: StartRunner) -> None:
    with start_runner(APP, "greet", "function") as runner:
        runner.wait_ready()
        assert runner.ask("GET", "/.glowplug/ready") == (200, {"ready": True, "methods": ["call"]})
        runner.activate()
        assert runner.call("call", name="Ada") == (200, {"result": "Hello, Ada!"})
        assert runner.ask("POST", "/call") == (200, {"result": "Hello, world!"})
        assert runner.terminate() == 0


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (APP, "Missing", "defines no 'Missing'"),
        ("def broken(:", "broken", "SyntaxError"),
        ("import no_such_package", "x", "No module named 'no_such_package'"),
        (
            "import glowplug as gp\nclass S:\n  @gp.enter(snap=True)\n  def load(self): open('/gone')",
            "S",
            "No such file or directory: '/gone'",
        ),
    ],
)
def test_what_cannot_be_loaded_prints_its_traceback_and_exits_with_1(
    start_runner: StartRunner, source: str, target: str, said: str
) -> None:
    with start_runner(source, target) as runner:
        assert runner.process.wait(60) == 1
        assert "Traceback" in runner.log
        assert said in runner.log


def test_a_failed_load_exits_though_the_users_threads_still_run(start_runner: StartRunner) -> None:
    source = """
        import threading, time
        threading.Thread(target=time.sleep, args=(60,)).start()
        raise RuntimeError("after starting a thread")
    """
    with start_runner(source, "x") as runner:
        assert runner.process.wait(60) == 1


def test_a_port_in_use_is_said_plainly(start_runner: StartRunner, service: RunnerProcess) -> None:
    with start_runner(APP, "Service", port=service.port) as runner:
        assert runner.process.wait(60) == 1
        assert f"cannot listen on port {service.port}" in runner.log
        assert "Traceback" not in runner.log


def test_sigterm_finishes_what_is_being_answered_then_runs_exit(
    start_runner: StartRunner, tmp_path: Path
) -> None:
    with start_runner(APP, "Service") as runner, ThreadPoolExecutor(1) as pool:
        runner.wait_ready().activate()
        idle = runner.connect()
        idle.request("POST", "/add", '{"a": 1}')
        idle.getresponse().read()
        answer = pool.submit(runner.call, "block", name=str(tmp_path / "release"))
        wait_for(lambda: "blocking" in runner.log)
        runner.process.terminate()
        wait_for(lambda: refuses_connections(runner))
        assert runner.process.poll() is None
        (tmp_path / "release").touch()
        assert answer.result(60) == (200, {"result": "released"})
        assert runner.process.wait(60) == 0
        assert "left with ['made', 'load', 'connect']" in runner.log
        idle.close()


def test_requests_that_never_end_are_cut_off_after_the_drain_timeout(
    start_runner: StartRunner, tmp_path: Path
) -> None:
    with start_runner(APP, "Service", arguments=("--drain-timeout-s", "0.2")) as runner:
        runner.wait_ready().activate()
        caller = threading.Thread(target=ask_and_be_cut_off, args=(runner, str(tmp_path / "never")))
        caller.start()
        wait_for(lambda: "blocking" in runner.log)
        assert runner.terminate() == 0
        caller.join(20)
        assert "requests unanswered after 0.2 s are cut off" in runner.log


def test_sigterm_during_a_long_load_ends_it(start_runner: StartRunner) -> None:
    source = """
        import time
        import glowplug as gp

        class S:
            @gp.enter(snap=True)
            def load(self):
                print("loading", flush=True)
                time.sleep(60)
    """
    with start_runner(source, "S") as runner:
        wait_for(lambda: "loading" in runner.log)
        assert runner.ask("GET", "/.glowplug/ready")[0] == 503
        assert runner.terminate() == 0


def test_sibling_modules_and_child_processes_can_be_imported_from(
    start_runner: StartRunner, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "neighbour.py").write_text("VALUE = 42")
    source = """
        import concurrent.futures, multiprocessing
        import glowplug as gp

        def square(x):
            return x * x

        class S:
            @gp.method()
            def late(self):
                import neighbour
                return neighbour.VALUE

            @gp.method()
            def in_a_child(self, x: int):
                context = multiprocessing.get_context("spawn")
                with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                    return pool.submit(square, x).result(30)
    """
    with start_runner(source, "S") as runner:
        runner.wait_ready().activate()
        assert runner.call("late") == (200, {"result": 42})
        assert runner.call("in_a_child", x=7) == (200, {"result": 49})


def test_the_runner_listens_where_it_is_told(start_runner: StartRunner) -> None:
    port = free_port()
    with start_runner(APP, "Service", port=port) as runner:
        runner.wait_ready()
        assert runner.port == port


def ask_and_be_cut_off(runner: RunnerProcess, name: str) -> None:
    try:
        runner.call("block", name=name)
    except (OSError, http.client.HTTPException):
        return


def refuses_connections(runner: RunnerProcess) -> bool:
    try:
        runner.ask("GET", "/.glowplug/ready")
    except OSError:
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds; fail after 20 s."""
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, "waited 60 s in vain"
        time.sleep(0.01)
