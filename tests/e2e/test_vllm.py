"""The main job: vLLM with real weights scales to zero and comes back with the same answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.engines import require_engine

pytestmark = [pytest.mark.engine, pytest.mark.sandbox, pytest.mark.timeout(900)]

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"
CYCLES = 2
DEMO_TIMEOUT_S = 840


def test_vllm_answers_the_same_after_every_restore_from_zero(tmp_path: Path) -> None:
    require_engine()
    done = subprocess.run(
        [sys.executable, str(DEMO), "--cycles", str(CYCLES), "--output", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "All answers are the same, and right." in done.stdout
    answers = done.stdout.partition("Every answer")[2].partition("Where the seconds went")[0]
    assert answers.count("Paris") == 1 + CYCLES
    assert answers.count("cpu_snapshot") == CYCLES
    assert "Restored is faster by" in done.stdout
    assert (tmp_path / "cdf.svg").read_text().lstrip().startswith("<?xml")
