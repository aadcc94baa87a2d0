"""Real engines, installed outside the clone by `make engines`, and what each of them must do."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.live import Live

from glowplug.node.start_times import ENOUGH
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import StartPath

CACHE = Path(os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug"))
ENGINE = CACHE / "engines" / "vllm-0.32.0"
SMALL_MODELS = CACHE / "engines" / "small-models"
SGLANG = CACHE / "engines" / "sglang-0.5.23"
MODEL = CACHE / "models" / "smollm2-135m-instruct"
TWO_RANKS = CACHE / "models" / "smollm2-135m-two-ranks"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FRANCE = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}


def require_engine(*paths: Path) -> None:
    """The engine is part of the product's promise: without it this test fails, unless told to be skipped."""
    missing = [str(path) for path in paths or (ENGINE / "bin" / "vllm", MODEL) if not path.exists()]
    if not missing:
        return
    if os.environ.get("GLOWPLUG_SKIP_ENGINES") == "1":
        pytest.skip("GLOWPLUG_SKIP_ENGINES=1")
    pytest.fail(f"{missing[0]} is missing: `make engines` installs it; GLOWPLUG_SKIP_ENGINES=1 skips this.")


@dataclass(frozen=True)
class EngineCase:
    """One engine: its example, a request, and what the answer to it holds."""

    example: str
    path: str
    expected: str
    body: Any = None
    needs: tuple[Path, ...] = ()
    recipe: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 120.0
    logged: str = ""
    """What a restored copy writes to its log."""

    @property
    def name(self) -> str:
        """What the test of it is called."""
        return "_".join([Path(self.example).stem, *(name.lower() for name in self.environment)])


QUICK = (
    EngineCase("onnx_runtime.py", "model/predict?x=1", '"sum":', None, (SMALL_MODELS,), "fastapi"),
    EngineCase(
        "llama_cpp.py", "server/v1/completions", "Paris", FRANCE,
        (SMALL_MODELS, CACHE / "models" / "smollm2-135m-gguf"), "llama.cpp",
    ),
    EngineCase("node_server.py", "primes/?below=1000000", "78498", None, (), "node"),
)  # fmt: skip
SLOW = (
    EngineCase(
        "transformers_fastapi.py", "generator/generate", "Paris", FRANCE, (SMALL_MODELS, MODEL), "uvicorn"
    ),
    EngineCase(
        "sentence_embeddings.py", "embedder/similarity", "[[1.0,0.", ["A cat sits.", "Stocks fell."],
        (SMALL_MODELS, CACHE / "models" / "all-minilm-l6-v2"), "uvicorn",
    ),
    EngineCase("chat_vllm.py", "vllm/v1/completions", "Paris", FRANCE, (), "vllm", timeout_s=600),
    EngineCase(
        "chat_vllm.py", "vllm/v1/completions", "Paris", FRANCE, (), "vllm",
        {"GLOWPLUG_VLLM_COMPILE": "1"}, timeout_s=900,
    ),
    EngineCase(
        "chat_sglang.py", "sglang/v1/completions", "Paris", FRANCE, (SGLANG, MODEL), "sglang", timeout_s=600
    ),
    EngineCase(
        "vllm_tensor_parallel.py", "vllm/v1/completions", "Paris", FRANCE, (TWO_RANKS,), "vllm", timeout_s=900
    ),
    EngineCase(
        "vllm_tensor_parallel.py", "vllm/v1/completions", "Paris", FRANCE, (TWO_RANKS,), "vllm",
        {"GLOWPLUG_VLLM_RANKS": "1"}, timeout_s=900, logged="this rank is back, generation 1",
    ),
)  # fmt: skip
CASES = QUICK + SLOW
NOT_FASTER = ("a cold start is measured", "opted out")
"""Reasons of a node that has found out, with a light engine, that its restores are no faster."""


@dataclass(frozen=True)
class Figures:
    """Seconds from a request to the first byte of its answer, as the router measured them."""

    cold_s: float
    restored_s: list[float]
    snapshot_bytes: int
    unpaid: int
    """Later starts that were cold because the node had found restores not to be faster."""

    def __str__(self) -> str:
        low, middle = min(self.restored_s), statistics.median(self.restored_s)
        size = f"snapshot {self.snapshot_bytes / 1e6:.0f} MB"
        restored = f"{middle:.2f} s (least {low:.2f}, n = {len(self.restored_s)})"
        opted_out = f", then {self.unpaid} cold: restores do not pay" if self.unpaid else ""
        return f"cold {self.cold_s:.2f} s, restored {restored}, {size}{opted_out}"


def start_and_restore(
    live: Live, apps: Apps, case: EngineCase, *, restores: int = 1, runtime: str | None = None
) -> Figures:
    """Deploy the example, ask it, and ask it again after each of some restores from zero."""
    require_engine(*case.needs)
    name = apps.name(case.example.partition(".")[0].replace("_", "-"))
    output = live.cli("deploy", str(_example(case, apps.folder, runtime)), "--name", name, **case.environment)
    assert f"Recipe {case.recipe}:" in output.stderr
    first = _ask(live, name, case)
    snapshot = live.wait_for_snapshot(name, case.timeout_s)
    for _ in range(restores):
        live.rest(name)
        assert _ask(live, name, case) == first
        if case.logged:
            assert case.logged in live.cli("logs", live.ready(name)[0].id).stdout
    *later, cold = live.cold_starts(name)
    assert cold.path is StartPath.COLD
    restored = [start for start in later if start.path is StartPath.CPU_SNAPSHOT]
    unpaid = [start for start in later if any(words in str(start.fallback_reason) for words in NOT_FASTER)]
    told = [(start.path, start.fallback_reason, start.outcome) for start in later]
    assert len(later) == restores, told
    assert len(restored) + len(unpaid) == restores, told
    assert len(restored) >= min(restores, ENOUGH), told
    assert {start.outcome for start in later} == {Outcome.ANSWERED}, told
    return Figures(cold.total_s, [start.total_s for start in restored], snapshot.bytes, len(unpaid))


def _example(case: EngineCase, folder: Path, runtime: str | None) -> Path:
    """The example itself, or a copy of it for another runtime."""
    file = EXAMPLES / case.example
    if runtime is None:
        return file
    text = file.read_text().replace("@app.server(\n", f"@app.server(\n    runtime={runtime!r},\n")
    copy = folder / case.example
    copy.write_text(text.replace('add_local_dir("servers"', f'add_local_dir("{EXAMPLES}/servers"'))
    return copy


def _ask(live: Live, name: str, case: EngineCase) -> Any:
    """What matters of an answer: all of it, or of a completion its text."""
    method = "GET" if case.body is None else "POST"
    answer = live.http.request(method, f"/{name}/{case.path}", json=case.body, timeout=case.timeout_s)
    assert answer.status_code == 200, answer.text
    assert case.expected in answer.text
    body = json.loads(answer.content)
    return body["choices"][0]["text"] if isinstance(body, dict) and "choices" in body else body
