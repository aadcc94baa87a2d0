"""Servers on the host's own kernel, as their user has them: to zero and back, looked into, from an image."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.image_root import make_python_root
from tests.e2e.live import TOOLBOX, Live
from tests.runtime.conftest import require_runc

from glowplug.types.replica import StartPath

pytestmark = pytest.mark.sandbox

APP_FILE = """
import glowplug as gp

app = gp.App("indexed")


@app.server(image=gp.Image.from_name("root:1"), memory="256MiB", runtime="runc", scaledown_window_s=60)
def web():
    return {command!r}
"""


@pytest.fixture(autouse=True)
def _runc() -> None:
    require_runc()


def test_a_trusted_server_runs_in_runc_and_is_restored_there(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="trusted", trusted=True)
    identity = app.ask()["identity"]
    [cold] = live.ready(app.name)
    assert cold.runtime == "runc"
    live.wait_for_snapshot(app.name)
    live.rest(app.name)
    answers = [app.ask("/who") for _ in range(2)]
    assert answers[0]["restored"] is True
    [restored] = live.ready(app.name)
    assert (restored.runtime, restored.path) == ("runc", StartPath.CPU_SNAPSHOT)
    assert answers[0]["replica_id"] == restored.id
    assert identity != answers[0]["identity"] == answers[1]["identity"], "that of the captured process"
    assert live.cold_starts(app.name)[0].fallback_reason is None


def test_a_server_that_nobody_vouches_for_runs_in_gvisor(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="untrusted", snapshot=False)
    app.ask()
    [view] = live.ready(app.name)
    assert view.runtime == "runsc"


def test_it_can_be_looked_into_and_its_log_read(live: Live, apps: Apps) -> None:
    app = apps.deploy("--say", "hello from runc", word="look", runtime="runc", snapshot=False)
    app.ask()
    [view] = live.ready(app.name)
    shown = live.cli("exec", view.id, "--", "sh", "-c", "hostname; echo $$; exit 3", code=3).stdout.split()
    assert shown[0] == view.id
    assert int(shown[1]) < 100, "a pid of the container's own"
    assert "hello from runc" in live.cli("logs", view.id).stdout
    live.cli("stop", app.name)
    live.wait_until_zero(app.name)


def test_an_image_that_is_mounted_from_an_index_is_restored_too(
    live: Live, apps: Apps, tmp_path: Path
) -> None:
    root = make_python_root(tmp_path / "root")
    live.cli("image", "import", str(root), "root:1")
    name = apps.name("indexed")
    file = tmp_path / "app.py"
    file.write_text(APP_FILE.format(command=["/usr/bin/python3", "-c", TOOLBOX.read_text()]))
    live.deploy(file, name)
    assert live.get(f"/{name}/web/")["version"] == "1"
    live.wait_for_snapshot(name)
    live.rest(name)
    live.restored(name)
    assert live.cold_starts(name)[0].path is StartPath.CPU_SNAPSHOT
