"""``glowplug pool``: tables, JSON, and errors that say what to do."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import Response
from tests.ports import free_port

from glowplug.cli.pool_fleet import read_metrics
from glowplug.cli.pool_nodes import Nodes
from glowplug.cli.session import Session
from glowplug.types.errors import Unavailable
from glowplug.types.paths import StateDir

from .conftest import Glowplug
from .fake_control import FakeControl

EXAMPLES = Path(__file__).parents[2] / "examples" / "pools"
EXAMPLE = str(EXAMPLES / "a100_chat.yaml")
PRICES = str(EXAMPLES / "gcp_prices_2023_11.csv")


def test_a_plan_says_what_to_ask_for_and_why(glowplug: Glowplug) -> None:
    result = glowplug("pool", "plan", EXAMPLE, "--explain", "--timeout", "100")
    assert result.exit_code == 0
    assert "GIVE BACK" in result.stdout
    assert "gcp/us-central1/a2-highgpu-1g/spot" in result.stdout
    assert "one more machine of it would save" in result.stdout
    assert "ONE MORE GPU SAVES USD" in result.stdout


def test_json_is_all_that_is_on_stdout(start_glowplug: Callable[..., subprocess.Popen[bytes]]) -> None:
    """In a process of its own: solvers write to the real stdout."""
    process = start_glowplug("pool", "plan", EXAMPLE, "--json", "--timeout", "100")
    out, _ = process.communicate(timeout=200)
    report = json.loads(out)
    assert process.returncode == 0
    assert report["version"] == 1
    assert report["costs"]["total_usd"] > 0
    assert {line["pool"] for line in report["pools"] if line["ask"] > 0}


def test_prices_as_known_at_a_moment_the_cheapest_gpu_first(glowplug: Glowplug) -> None:
    result = glowplug(
        "pool", "prices", PRICES, "--cloud", "gcp", "--gpu", "A100", "--at", "2023-11-16", "--json"
    )
    quotes = json.loads(result.stdout)
    each = [quote["usd_per_gpu_h"] for quote in quotes]
    assert each == sorted(each)
    assert {quote["gpu"] for quote in quotes} == {"A100"}
    assert {quote["age_s"] for quote in quotes} == {0.0}
    table = glowplug("pool", "prices", PRICES, "--cloud", "gcp", "--at", "2023-11-10", "--rows", "3")
    assert table.stdout.count("gcp/") == 3
    assert "USD/GPU-H" in table.stdout
    assert "24 h" in table.stdout or "1 d" in table.stdout
    assert "No price was known then" in glowplug("pool", "prices", PRICES, "--at", "2001-01-01").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pool", "plan", "none.yaml"), "cannot be read"),
        (("pool", "prices", "none.csv"), "cannot be read"),
        (("pool", "prices", PRICES, "--at", "soon"), "is no date"),
        (("pool", "plan", PRICES), "none.csv"),
        (("pool", "plan", EXAMPLE, "--timeout", "0.01"), "no plan after"),
    ],
)
def test_errors_say_what_to_do(glowplug: Glowplug, words: tuple[str, ...], said: str) -> None:
    result = glowplug(*words)
    assert result.exit_code == 1
    assert "Remedy:" in result.stderr
    if said != "none.csv":
        assert said in result.stderr


def test_without_the_extra_the_remedy_is_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['highspy'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "glowplug.cli", "pool", "plan", EXAMPLE],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "glowplug[pool]" in done.stderr


def test_other_commands_do_not_load_the_solvers() -> None:
    program = (
        "import sys, glowplug.cli.main; "
        "print([name for name in ('ortools', 'highspy', 'scipy', 'glowplug.pool') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_example_runs_shows_its_machines_and_explains_its_plan(
    glowplug: Glowplug, start_glowplug: Callable[..., subprocess.Popen[bytes]]
) -> None:
    assert "No planner has run here" in glowplug("pool", "status").stderr
    process = start_glowplug("pool", "run", str(EXAMPLES / "always_ready.yaml"))
    try:
        deadline_s = time.monotonic() + 200
        while time.monotonic() < deadline_s:
            result = glowplug("pool", "status", "--json")
            if result.exit_code == 0:
                status = json.loads(result.stdout)
                if sum(held["state"] == "ready" for held in status["machines"]) >= 2:
                    break
            time.sleep(0.3)
        else:
            pytest.fail(f"two machines were not ready in time: {result.stdout} {result.stderr}")
        assert status["is_running"]
        assert 0.8 - 1e-9 <= status["rented_usd_per_h"] <= status["spend_usd_per_h"] <= 6.0
        table = glowplug("pool", "status", "--events", "3").stdout
        assert "A planner runs" in table
        assert "paper/here/small/spot" in table
        assert "granted" in glowplug("pool", "status", "--events", "100").stdout
        assert "ONE MORE GPU SAVES USD" in glowplug("pool", "explain").stdout
        assert json.loads(glowplug("pool", "explain", "--json").stdout)["version"] == 1
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert "No planner runs" in glowplug("pool", "status").stdout


@pytest.mark.parametrize(
    ("file", "said"), [("a100_chat.yaml", "plans for one moment"), ("none.yaml", "cannot be read")]
)
def test_what_cannot_be_run_says_why(glowplug: Glowplug, file: str, said: str) -> None:
    result = glowplug("pool", "run", str(EXAMPLES / file))
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Remedy:" in result.stderr


def test_what_nodes_of_the_control_plane_do_is_what_they_are_worth(
    control: FakeControl, glowplug: Glowplug, tmp_path: Path
) -> None:
    view = {
        "name": "box-1", "agent_pid": 1, "version": "0", "cpus": 2, "cpus_used": 0, "memory_bytes": 1,
        "memory_used_bytes": 0, "runtime": "runsc", "replicas": 3,
    }  # fmt: skip
    control.nodes = [
        {"name": "box-1", "is_reachable": True, "view": view, "state": "ready", "replicas": 1},
        {"name": "box-2", "is_reachable": False, "state": "lost", "replicas": 2},
        {"name": "box-3", "is_reachable": True, "state": "draining", "replicas": 4},
    ]
    session = Session(StateDir(tmp_path), url=control.url)
    work = Nodes(session).look()
    assert work.worth == {"box-1": 3.0, "box-2": 2.0, "box-3": 4.0}
    assert (work.heard, work.drained) == (frozenset({"box-1", "box-3"}), frozenset({"box-3"}))
    assert work.listed == frozenset(work.worth)
    control.raw_answer = Response("glowplug_held_requests 1.0\n")
    assert read_metrics(session) == "glowplug_held_requests 1.0\n"
    control.raw_answer = Response("no", 503)
    with pytest.raises(Unavailable, match="does not tell its metrics"):
        read_metrics(session)
    with pytest.raises(Unavailable, match="not running"):
        read_metrics(Session(StateDir(tmp_path)))


def test_metrics_of_the_control_plane_beside_us_are_not_asked_of_a_proxy(
    control: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    control.raw_answer = Response("glowplug_held_requests 1.0\n")
    assert read_metrics(Session(StateDir(tmp_path), url=control.url)) == "glowplug_held_requests 1.0\n"
