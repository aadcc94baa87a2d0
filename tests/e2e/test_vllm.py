"""vLLM with real weights scales to zero and comes back, also on another node, with the same answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.engines import require_engine
from tests.runtime.conftest import require_runc

pytestmark = [pytest.mark.engine, pytest.mark.sandbox, pytest.mark.timeout(900)]

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"
DEMO_TIMEOUT_S = 840


# gVisor's cold starts take three minutes here: every night, and in each `make demo`. So do second cycles, of
# which each proves what the first one did.
@pytest.mark.parametrize(
    ("runtime", "cycles"), [pytest.param("runsc", 2, marks=pytest.mark.nightly), ("runc", 1)]
)
def test_vllm_answers_the_same_after_every_restore_from_zero(
    tmp_path: Path, runtime: str, cycles: int
) -> None:
    require_engine()
    if runtime == "runc":
        require_runc()
    done = subprocess.run(
        [
            *(sys.executable, str(DEMO), "--cycles", str(cycles)),
            *("--runtime", runtime, "--output", str(tmp_path)),
        ],
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
    starts = [line.split()[0] for line in answers.splitlines() if re.search("Paris|L'Étoile", line)]
    assert starts == ["cold", *["cpu_snapshot"] * (cycles + 1), *["parked"] * cycles]
    elsewhere = done.stdout.partition("Another node")[2]
    assert "(cpu_snapshot)" in elsewhere
    assert re.search(r"GB in \d+ chunks from region", elsewhere)
    assert "Restored is faster by" in done.stdout
    assert (tmp_path / "cdf.svg").read_text().lstrip().startswith("<?xml")
