"""``make demo-cluster`` as it is: the light app on a real Ray. With vLLM it is for people."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "cluster_demo.py"

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: make ray"),
]


def test_a_burst_spreads_over_rays_machines_and_nobody_notices_that_one_died() -> None:
    argv = [sys.executable, str(DEMO)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=800, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it held" in done.stdout
    assert "loses its power" in done.stdout
