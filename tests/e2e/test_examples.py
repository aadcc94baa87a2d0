"""What the README tells people to type: every example, and a bare command, to zero and back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.engines import CASES, require_engine
from tests.e2e.live import GLOWPLUG, Live
from tests.runtime.conftest import RUNC_BY_NIGHT, require_runc
from tests.snapshot.kept_files import mounted_files

from glowplug.types.coldstart import Outcome
from glowplug.types.replica import StartPath

pytestmark = pytest.mark.sandbox

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OF_OTHER_TESTS = {"chat_vllm.py", "several_ranks.py", "from_registry.py", "from_name.py"}
OF_OTHER_TESTS |= {"gpu_server.py", "gpu_turns.py"}
OF_OTHER_TESTS |= {case.example for case in CASES}
"""``test_vllm``, ``test_lazy_images``, ``test_gpu``, ``test_ranks`` and ``test_engines*`` run them."""
NEEDS_ENGINE = {"streamed_weights.py", "torch_server.py"}
NEEDS_RUNC = {"runc_server.py"}
TAKES_LONG = {"streamed_weights.py"}
CALLS: dict[str, tuple[str, Any]] = {
    "hello_function.py": ("/greet/call", {"name": "Ada"}),
    "embedder_cls.py": ("/embedder/embed", {"texts": ["hello", "world"]}),
    "static_files.py": ("/static/hello_function.py", None),
    "streamed_weights.py": ("/generator/generate", {"prompt": "The capital of France is"}),
    "torch_server.py": ("/weights/", None),
    "hooks_server.py": ("/cup/", None),
    "runc_server.py": ("/table/?below=1000000", None),
    "parked_index.py": ("/lookup/?word=w4711", None),
}
SECRETS = {"EMBEDDER_SALT": "an end-to-end salt"}
SIZES = {"GLOWPLUG_TORCH_MB": "64"}


def ask(live: Live, path: str, body: Any) -> bytes:
    answer = live.http.get(path) if body is None else live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_every_example_is_tried() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(CALLS) | OF_OTHER_TESTS


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, marks=[pytest.mark.engine] if example in NEEDS_ENGINE else [])
        for example in sorted(set(CALLS) - TAKES_LONG)
    ]
    + [
        pytest.param(example, marks=[pytest.mark.engine, pytest.mark.nightly])
        for example in sorted(TAKES_LONG)
    ],
)
def test_an_example_answers_the_same_after_it_was_scaled_to_zero(
    live: Live, apps: Apps, example: str
) -> None:
    if example in NEEDS_ENGINE:
        require_engine()
    if example in NEEDS_RUNC:
        require_runc()
    name = apps.name(example.partition("_")[0])
    path, body = CALLS[example]
    live.deploy(EXAMPLES / example, name, **SECRETS, **SIZES)
    first = ask(live, f"/{name}{path}", body)
    live.wait_for_snapshot(name)
    live.rest(name)
    assert ask(live, f"/{name}{path}", body) == first
    restored, cold = live.cold_starts(name)
    assert (cold.path, restored.path) == (StartPath.COLD, StartPath.CPU_SNAPSHOT)
    assert restored.fallback_reason is None
    assert {cold.outcome, restored.outcome} == {Outcome.ANSWERED}


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_copies_of_the_server_with_hooks_throw_dice_of_their_own_over_connections_of_their_own(
    live: Live, apps: Apps, tmp_path: Path, runtime: str
) -> None:
    if runtime == "runc":
        require_runc()
    name = apps.name("dice")
    file = tmp_path / "dice.py"
    text = (EXAMPLES / "hooks_server.py").read_text()
    # A key of its own, so that the first start is cold.
    file.write_text(text.replace('memory="256MiB"', f'memory="257MiB", runtime="{runtime}"'))
    live.deploy(file, name)
    path = f"/{name}/cup/?throws=30"
    answers = [json.loads(ask(live, path, None))]
    live.wait_for_snapshot(name)
    for _ in range(2):
        live.rest(name)
        answers.append(json.loads(ask(live, path, None)))
    assert [record.path for record in live.cold_starts(name)][:2] == [StartPath.CPU_SNAPSHOT] * 2
    assert len({str(answer["throws"]) for answer in answers}) == 3
    assert {answer["connections"] for answer in answers} == {4}


def test_a_secret_reaches_a_restored_copy_but_not_its_snapshot(
    live: Live, apps: Apps, tmp_path: Path
) -> None:
    name = apps.name("secret")
    # Equal code would share the snapshot that the other test's app has: this one is its own.
    file = tmp_path / "embedder.py"
    file.write_text((EXAMPLES / "embedder_cls.py").read_text().replace("DIMENSIONS = 64", "DIMENSIONS = 32"))
    live.deploy(file, name, **SECRETS)
    path = f"/{name}/embedder/signature"
    first = ask(live, path, {"text": "hello"})
    snapshot = live.wait_for_snapshot(name)
    live.rest(name)
    assert ask(live, path, {"text": "hello"}) == first
    assert live.cold_starts(name)[0].path is StartPath.CPU_SNAPSHOT
    for file in mounted_files(live.state, snapshot.id).iterdir():
        assert SECRETS["EMBEDDER_SALT"].encode() not in file.read_bytes(), file.name


@contextlib.contextmanager
def attached_run(live: Live, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(GLOWPLUG), "run", *arguments],
        env=live.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=120)


def test_a_bare_command_scales_to_zero_and_comes_back_until_ctrl_c(live: Live, apps: Apps) -> None:
    name = apps.name("bare")
    command = ["python", "-m", "http.server", "8000"]
    windows = ["--scaledown-window", "1", "--parked-window", "0"]
    with attached_run(live, "--name", name, *windows, "--", *command) as process:
        live.wait_for(lambda: live.http.get(f"/{name}/server/").status_code == 200, "the first answer")
        live.wait_for_snapshot(name)
        live.wait_until_zero(name)
        assert "Directory listing" in live.http.get(f"/{name}/server/").text
        restored, cold = live.cold_starts(name)
        assert (cold.path, restored.path) == (StartPath.COLD, StartPath.CPU_SNAPSHOT)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"Stopped and removed {name}" in output
    assert live.http.get(f"/{name}/server/").status_code == 404
