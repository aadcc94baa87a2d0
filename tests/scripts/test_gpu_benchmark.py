"""The benchmark for machines with a GPU works: a dry run on the fake driver. It says nothing about a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.engines import ENGINE, require_engine
from tests.runtime.conftest import require_runc

pytestmark = [pytest.mark.engine, pytest.mark.sandbox, pytest.mark.timeout(600)]

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
SMALL = "--sizes 0.02 --repeats 2 --cold 1 --models 3 --rounds 2 --kills 1 --no-compile"


def run(script: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-P", str(FOLDER / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What one dry run wrote."""
    require_engine()
    require_runc()  # that is, CRIU
    output, work = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("work")
    places = ["--work", str(work), "--output", str(output), "--torch-python", str(ENGINE / "bin" / "python")]
    done = run("run.py", "--fake", *SMALL.split(), *places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(work.iterdir()) == []
    return json.loads((output / "gpu.json").read_text()), output


@pytest.mark.nightly
def test_a_dry_run_measures_every_part_and_every_answer_is_right(
    dry_run: tuple[dict[str, Any], Path],
) -> None:
    result, _ = dry_run
    facts = result["sizes"]["0.02"]
    for part, count in (("cold", 1), ("parked", 2), ("restored", 2)):
        assert (facts[part]["n"], facts[part]["wrong_answers"]) == (count, 0)
    assert {"lock_s", "checkpoint_s", "restore_s", "unlock_s", "total_s"} <= facts["parked"]["samples"][
        0
    ].keys()
    assert min(facts["parked"]["freed_bytes"]) >= facts["parked"]["device_bytes"] > 15e6
    assert facts["restored"]["snapshot_bytes"] > 20e6
    assert {"import_s", "weights_s", "first_answer_s", "total_s"} <= facts["cold"]["samples"][0].keys()
    assert (result["turns"]["models"], result["turns"]["n"], result["turns"]["wrong_answers"]) == (3, 5, 0)
    for state, counts in result["kills"]["states"].items():
        assert counts == {"n": 1, "memory_not_freed": 0, "witness_wrong": 0, "guard_failed": 0}, state
    assert len(result["kills"]["states"]) == 4
    assert result["weights"]["is_same"]
    assert set(result["weights"]["rates"]) == {
        "disk in order", "glowplug.weights", "safetensors", "safetensors, pread",
    }  # fmt: skip
    assert result["problems"] == []


@pytest.mark.nightly
def test_what_is_fake_is_called_fake(dry_run: tuple[dict[str, Any], Path]) -> None:
    result, output = dry_run
    text = (output / "gpu.md").read_text()
    assert result["is_fake"]
    assert result["machine"]["card"].startswith("FAKE")
    assert "DRY RUN" in text.splitlines()[2]
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert all("FAKE" in line for line in headings if not line.endswith(("Left out", "Failed"))), headings


def test_without_a_gpu_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a GPU")
    done = run("run.py", "--work", str(tmp_path), "--output", str(tmp_path / "output"))
    assert done.returncode == 2
    assert "has no NVIDIA GPU" in done.stderr
    assert "--fake" in done.stderr


@pytest.mark.nightly
def test_a_budget_that_is_too_small_leaves_out_and_names_what(tmp_path: Path) -> None:
    require_engine()
    places = [
        "--work",
        str(tmp_path),
        "--output",
        str(tmp_path),
        "--torch-python",
        str(ENGINE / "bin" / "python"),
    ]
    done = run("run.py", "--fake", "--parts", "cold", "--minutes", "0.0001", *SMALL.split(), *places)
    assert done.returncode == 1
    assert "no time for a single start" in done.stdout
