"""`make nightly`: all engines on both runtimes, with the figures of docs/engines.md. Many minutes.

From the examples, and as bare commands whose recipe Glowplug has to find by itself.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.engines import (
    CACHE,
    CASES,
    ENGINE,
    EXAMPLES,
    FRANCE,
    MODEL,
    SMALL_MODELS,
    EngineCase,
    require_engine,
    start_and_restore,
)
from tests.e2e.live import Live
from tests.runtime.conftest import RUNTIMES, require_runc

from glowplug.node.start_times import ENOUGH
from glowplug.types.replica import SnapshotStatus, StartPath

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.engine,
    pytest.mark.sandbox,
    pytest.mark.timeout(2400),
]

RESTORES = 5
LLAMA = CACHE / "models" / "smollm2-135m-gguf"
GGUF = LLAMA / "SmolLM2-135M-Instruct.Q4_1.gguf"
# The wheel carries llama.cpp's server as a library: this is the program around it, by its name.
LLAMA_SERVER = '#!/bin/sh\nexec python3 llama_server.py "$2"\n'


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_engine_answers_the_same_after_every_restore(
    live: Live, apps: Apps, case: EngineCase, runtime: str
) -> None:
    if runtime == "runc":
        require_runc()
    print(
        f"{case.name}, {runtime}: {start_and_restore(live, apps, case, restores=RESTORES, runtime=runtime)}"
    )


@dataclass(frozen=True)
class BareCommand:
    """What somebody types behind ``glowplug run --``, in a folder with these files, and what it answers."""

    recipe: str
    command: tuple[str, ...]
    path: str
    expected: str
    body: Any = None
    options: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    needs: tuple[Path, ...] = ()


BARE = (
    BareCommand(
        "vllm",
        (
            *(str(ENGINE / "bin/vllm"), "serve", str(MODEL), "--enforce-eager", "--max-model-len", "512"),
            *("--max-num-seqs", "4", "--kv-cache-memory-bytes", "64M"),
        ),
        "v1/completions",
        "Paris",
        {**FRANCE, "model": str(MODEL)},
        ("--env", "HF_HUB_OFFLINE=1", "--env", "HOME=/tmp/home"),
    ),
    BareCommand(
        "uvicorn",
        (str(SMALL_MODELS / "bin/uvicorn"), "onnx_server:app"),
        "predict?x=1",
        '"sum":',
        options=("--ready", "/openapi.json", "--memory", "1GiB"),
        files={"onnx_server.py": (EXAMPLES / "servers/onnx_server.py").read_text()},
        needs=(SMALL_MODELS,),
    ),
    BareCommand(
        "llama.cpp",
        ("./llama-server", "-m", str(GGUF)),
        "v1/completions",
        "Paris",
        FRANCE,
        ("--venv", str(SMALL_MODELS)),
        {
            "llama-server": LLAMA_SERVER,
            "llama_server.py": (EXAMPLES / "servers/llama_server.py").read_text(),
        },
        (SMALL_MODELS, LLAMA),
    ),
)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bare", BARE, ids=lambda bare: bare.recipe)
def test_a_bare_command_of_an_engine_finds_its_recipe_and_comes_back_from_zero(
    live: Live, apps: Apps, tmp_path: Path, bare: BareCommand, runtime: str
) -> None:
    if runtime == "runc":
        require_runc()
    require_engine(*bare.needs)
    for name, text in bare.files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    app = apps.name(bare.recipe.replace(".", "-"))
    options = ("--runtime", runtime, "--parked-window", "0", *bare.options)
    told = live.cli("run", "--detach", "--name", app, *options, "--", *bare.command, cwd=tmp_path)
    assert f"Recipe {bare.recipe}:" in told.stderr
    first = _ask(live, app, bare)
    live.wait_for_snapshot(app, timeout_s=1200)
    live.rest(app)
    assert _ask(live, app, bare) == first
    assert live.cold_starts(app)[0].path is StartPath.CPU_SNAPSHOT


def _ask(live: Live, app: str, bare: BareCommand) -> Any:
    """What matters of an answer: all of it, or of a completion its text."""
    method = "GET" if bare.body is None else "POST"
    answer = live.http.request(method, f"/{app}/server/{bare.path}", json=bare.body, timeout=1200)
    assert answer.status_code == 200, answer.text
    assert bare.expected in answer.text
    body = json.loads(answer.content)
    return body["choices"][0]["text"] if "choices" in body else body


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_smallest_app_comes_back_from_zero(live: Live, apps: Apps, tmp_path: Path, runtime: str) -> None:
    if runtime == "runc":
        require_runc()
    text = (EXAMPLES / "hello_function.py").read_text()
    file = tmp_path / "hello_function.py"
    file.write_text(text.replace("@app.function(snapshot", f"@app.function(runtime={runtime!r}, snapshot"))
    name = apps.name("hello")
    live.deploy(file, name)
    for _ in range(2):
        answer = live.http.post(f"/{name}/greet/call", json={"name": "Ada"})
        assert answer.json() == {"result": "Hello, Ada!"}
        live.wait_for_snapshot(name)
        [view] = live.ready(name)
        assert view.runtime == runtime
        live.rest(name)
    assert live.cold_starts(name)[0].path is StartPath.CPU_SNAPSHOT


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_node_gives_up_the_snapshots_of_a_light_engine_exactly_if_they_do_not_pay(
    live: Live, apps: Apps, runtime: str
) -> None:
    """llama.cpp loads a model this small as fast as its snapshot: which of the two wins, the machine says."""
    if runtime == "runc":
        require_runc()
    (case,) = (case for case in CASES if case.recipe == "llama.cpp")
    start_and_restore(live, apps, case, restores=3 * ENOUGH, runtime=runtime)
    (name,) = apps.names
    (snapshot,) = live.snapshots(name)
    times = json.loads(live.state.start_times.read_text())["keys"][snapshot.id]
    restored_s, cold_s = (statistics.median(times[kind]) for kind in ("restored_s", "cold_s"))
    print(f"llama.cpp, {runtime}: restored {restored_s:.2f} s, cold {cold_s:.2f} s: {snapshot.status.value}")
    if snapshot.status is SnapshotStatus.OPTED_OUT:
        assert restored_s >= cold_s
        assert "restores are not faster" in str(snapshot.reason)
        assert live.cold_starts(name)[0].fallback_reason == snapshot.reason
    else:
        assert snapshot.status is SnapshotStatus.GOOD
        assert restored_s < cold_s or len(times["cold_s"]) < ENOUGH
