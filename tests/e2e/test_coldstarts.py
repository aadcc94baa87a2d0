"""What a user sees of the starts that really were."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.live import Live
from tests.e2e.test_parking import parked

pytestmark = pytest.mark.sandbox


def test_cold_restored_and_woken_starts_are_three_curves(live: Live, apps: Apps, tmp_path: Path) -> None:
    app = apps.deploy(word="curves", scaledown_window_s=1.0, parked_window_s=60)
    app.ask()
    live.wait_for_snapshot(app.name)
    live.rest(app.name)
    app.ask()
    parked(live, app.name)
    app.ask()
    live.wait_for(lambda: len(live.cold_starts(app.name)) == 3, "three records")
    shown = live.cli("coldstarts", app.name, "--plot", "--svg", str(tmp_path / "cdf.svg")).stdout
    assert "● cold          n = 1" in shown
    assert "▲ cpu_snapshot  n = 1" in shown
    assert "■ parked        n = 1" in shown
    assert "100% ┤" in shown
    assert (tmp_path / "cdf.svg").read_text().lstrip().startswith("<?xml")
