"""What makes copies of one snapshot different, and that it happens once per phase of a process's life."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .conftest import StartRunner
from .runner_process import RunnerProcess

APP = """
    import os, random, socket, threading
    import glowplug as gp

    class Service:
        events = []

        @gp.enter(snap=True)
        def load(self):
            random.seed(1)
            self.events.append("load")

        @gp.enter(snap=False)
        def connect(self):
            self.token = os.environ.get("TOKEN")
            assert threading.current_thread() is threading.main_thread()
            if self.token == "bad":
                raise ConnectionError("bad token")
            self.events.append(f"connect {self.token}")

        @gp.before_snapshot()
        def tidy(self):
            self.events.append("tidy")

        @gp.method()
        def get_events(self):
            return self.events

        @gp.method()
        def draw(self):
            return random.random()

        @gp.method()
        def name(self):
            return socket.gethostname()
"""
FIRST_AFTER_SEED_1 = 0.13436424411240122


def events(runner: RunnerProcess) -> Any:
    return runner.probe("get_events")[1]["result"]


def test_calls_wait_for_activation_unless_the_agent_makes_them(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        status, error = runner.call("get_events")
        assert (status, error["code"]) == (503, "unavailable")
        assert runner.probe("get_events") == (200, {"result": ["load"]})
        assert runner.activate(TOKEN="t") == (200, {"activated": True, "ran": True})
        assert runner.call("get_events") == (200, {"result": ["load", "connect t"]})


def test_a_repeated_activation_does_nothing(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: runner.activate(TOKEN="t"), range(8)))
        assert sorted(answer["ran"] for _, answer in answers) == [False] * 7 + [True]
        assert events(runner) == ["load", "connect t"]


def test_a_restored_copy_is_activated_again_once(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        runner.activate(TOKEN="old")
        assert runner.activate(TOKEN="new", restored=True)[1]["ran"]
        assert not runner.activate(TOKEN="newer", restored=True)[1]["ran"]
        assert not runner.activate(TOKEN="newer")[1]["ran"]
        assert events(runner) == ["load", "connect old", "connect new"]


def test_after_before_snapshot_the_copy_must_be_activated_whatever_it_was(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        runner.activate(TOKEN="capture", restored=True)
        assert runner.ask("POST", "/.glowplug/before_snapshot", {}) == (200, {"done": True})
        assert runner.call("get_events")[0] == 503
        assert runner.activate(TOKEN="copy", restored=True)[1]["ran"]
        assert events(runner) == ["load", "connect capture", "tidy", "connect copy"]


def test_before_snapshot_closes_the_connections_that_could_not_be_captured(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready().activate()
        idle, asking = runner.connect(), runner.connect()
        idle.request("POST", "/get_events")
        idle.getresponse().read()
        asking.request("POST", "/.glowplug/before_snapshot", "{}")
        assert asking.getresponse().getheader("Connection") == "close"
        assert idle.sock.recv(1) == b""
        idle.close()
        asking.close()


def test_a_failing_enter_is_reported_and_may_be_tried_again(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        status, answer = runner.activate(TOKEN="bad")
        assert (status, answer["error"]["type"]) == (500, "ConnectionError")
        assert "bad token" in answer["error"]["traceback"]
        assert runner.call("get_events")[0] == 503
        assert runner.activate(TOKEN="good")[1]["ran"]
        assert runner.call("get_events") == (200, {"result": ["load", "connect good"]})


def test_randomness_differs_between_copies(start_runner: StartRunner) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        assert runner.probe("draw")[1]["result"] == FIRST_AFTER_SEED_1  # captured: the same in every copy
        runner.activate()
        first = runner.call("draw")[1]["result"]
        runner.activate(restored=True)
        assert runner.call("draw")[1]["result"] != first


def test_numpy_is_reseeded_where_it_is_loaded(start_runner: StartRunner) -> None:
    pytest.importorskip("numpy")
    source = """
        import numpy
        import glowplug as gp

        class Service:
            @gp.enter(snap=True)
            def load(self):
                numpy.random.seed(1)

            @gp.enter(snap=False)
            def connect(self):
                self.drawn = numpy.random.random()

            @gp.method()
            def draw(self):
                return self.drawn
    """
    with start_runner(source, "Service", site_packages=True) as runner:
        runner.wait_ready()
        runner.activate()
        first = runner.call("draw")[1]["result"]
        assert first != pytest.approx(0.417022004702574)  # numpy's first number after seed(1)
        runner.activate(restored=True)
        assert runner.call("draw")[1]["result"] != first


def test_torch_is_reseeded_where_it_is_loaded(start_runner: StartRunner, tmp_path: Path) -> None:
    # A stand-in with the one function the runner uses: the real one takes seconds to import.
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "torch.py").write_text("seeds = []\nmanual_seed = seeds.append\n")
    source = """
        import torch
        import glowplug as gp

        class Service:
            @gp.method()
            def seeds(self):
                return torch.seeds
    """
    with start_runner(source, "Service") as runner:
        runner.wait_ready()
        runner.activate()
        runner.activate(restored=True)
        first, second = runner.call("seeds")[1]["result"]
        assert first != second
        assert 0 <= min(first, second) <= max(first, second) < 2**63


@pytest.mark.parametrize(
    "body",
    [
        {"env": {"A": 1}},
        {"env": ["A"]},
        {"env": {"A=B": "x"}},
        {"env": {"": "x"}},
        {"env": {"A": "x\0"}},
        {"env": {"A": "\ud800"}},
        {"env": {}, "restored": 1},
        {"env": {}, "hostname": 3},
        [],
    ],
)
def test_a_malformed_activation_is_refused_and_changes_nothing(start_runner: StartRunner, body: Any) -> None:
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        status, error = runner.ask("POST", "/.glowplug/activate", body)
        assert (status, error["code"]) == (400, "invalid_input")
        assert events(runner) == ["load"]


def test_a_caller_from_outside_reaches_neither_the_control_calls_nor_the_probe(
    start_runner: StartRunner,
) -> None:
    routed = {"X-Forwarded-For": "203.0.113.7"}
    with start_runner(APP, "Service") as runner:
        runner.wait_ready()
        assert runner.ask("POST", "/.glowplug/activate", {"env": {"A": "1"}}, headers=routed)[0] == 404
        assert runner.ask("GET", "/.glowplug/ready", headers=routed)[0] == 404
        assert runner.ask("POST", "/get_events", {}, headers={**routed, "x-glowplug-probe": "1"})[0] == 503
        assert events(runner) == ["load"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a host name of one's own takes root")
def test_the_host_name_is_the_copys_own(start_runner: StartRunner) -> None:
    # In a host-name namespace of its own, as a container has: this machine keeps its name.
    with start_runner(APP, "Service", wrapper=("unshare", "--uts")) as runner:
        runner.wait_ready()
        runner.ask("POST", "/.glowplug/activate", {"env": {}, "hostname": "copy-1"})
        assert runner.call("name") == (200, {"result": "copy-1"})


def test_a_life_cycle_method_that_takes_too_long_is_a_504_that_names_it(start_runner: StartRunner) -> None:
    source = """
        import time
        import glowplug as gp

        class Service:
            @gp.enter(snap=False)
            def connect(self):
                time.sleep(60)

            @gp.method()
            def ask(self):
                return 1
    """
    with start_runner(source, "Service", arguments=("--lifecycle-timeout-s", "0.1")) as runner:
        runner.wait_ready()
        status, error = runner.activate()
        assert (status, error["code"], error["details"]["stage"]) == (504, "deadline_exceeded", "activate")
