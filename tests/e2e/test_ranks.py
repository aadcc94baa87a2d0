"""Several ranks in one server, captured and restored by the node agent: with the plugin, and without.

vLLM on two ranks is one of the engines of ``make nightly``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.engines import EXAMPLES, require_engine
from tests.e2e.live import Live
from tests.runtime.conftest import require_runc

from glowplug.types.replica import SnapshotStatus, StartPath

pytestmark = [pytest.mark.sandbox, pytest.mark.engine, pytest.mark.timeout(600)]

SNAPSHOT_TIMEOUT_S = 240
COPIES = 2
ENABLE, WORK = "    nccl.enable()\n", "questions.send(compute("
TELL = "for worker in workers:\n            worker.send(x)"
BREAK = f"{ENABLE}    if rank == 2:\n        nccl.after_rebuild(lambda: 1 / 0)\n"
IN_STEP = "dist.broadcast(torch.zeros(1), src=0)\n        "
Changes = dict[str, str]


def expected(x: float) -> list[dict[str, Any]]:
    """What each of the four ranks computes."""
    gathered = [x + rank for rank in range(4)]
    pairs = [x, x, 5 * x, 5 * x]
    return [{"sum": 10 * x, "gathered": gathered, "pair": pair} for pair in pairs]


def write(folder: Path, runtime: str, changes: Changes | None = None) -> Path:
    """The example for a runtime, with texts of it replaced."""
    text = (EXAMPLES / "several_ranks.py").read_text()
    server = "@app.server(\n"
    for old, new in {server: f"{server}    runtime={runtime!r},\n", **(changes or {})}.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = folder / "several_ranks.py"
    file.write_text(text)
    return file


@pytest.fixture(params=[pytest.param("runsc", marks=pytest.mark.nightly), "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    require_engine()
    if request.param == "runc":
        require_runc()
    return str(request.param)


def test_four_ranks_compute_the_same_in_every_copy_with_communicators_of_its_own(
    live: Live, apps: Apps, tmp_path: Path, runtime: str
) -> None:
    name = apps.name("mesh")
    live.deploy(write(tmp_path, runtime), name)
    path = f"/{name}/ranks"
    assert live.get(f"{path}/?x=3") == expected(3)
    assert live.get(f"{path}/status") == {"generation": 0, "groups": 2}
    live.wait_for_snapshot(name, SNAPSHOT_TIMEOUT_S)
    for _ in range(COPIES):
        live.rest(name)
        assert live.get(f"{path}/?x=5") == expected(5)
        assert live.get(f"{path}/status") == {"generation": 1, "groups": 2}
        assert live.cold_starts(name)[0].path is StartPath.CPU_SNAPSHOT


@pytest.mark.nightly
def test_four_ranks_on_loopback_are_captured_without_the_plugin_too(
    live: Live, apps: Apps, tmp_path: Path, runtime: str
) -> None:
    name = apps.name("plain")
    live.deploy(write(tmp_path, runtime, {ENABLE: ""}), name)
    path = f"/{name}/ranks/?x=3"
    assert live.get(path) == expected(3)
    live.wait_for_snapshot(name, SNAPSHOT_TIMEOUT_S)
    for _ in range(COPIES):
        live.rest(name)
        assert live.get(path) == expected(3)
        assert live.cold_starts(name)[0].path is StartPath.CPU_SNAPSHOT


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({ENABLE: BREAK}, "Rank 2 failed to verify: ZeroDivisionError", id="rebuild"),
        pytest.param({TELL: IN_STEP + TELL, WORK: IN_STEP + WORK}, "is in flight", id="collective"),
    ],
)
def test_ranks_that_cannot_be_captured_serve_on_and_the_snapshot_says_why(
    live: Live, apps: Apps, tmp_path: Path, changes: Changes, named: str
) -> None:
    require_engine()
    require_runc()
    name = apps.name("cannot")
    live.deploy(write(tmp_path, "runc", changes), name)
    path = f"/{name}/ranks/?x=3"
    assert live.get(path) == expected(3)

    def refusal() -> str | None:
        views = live.snapshots(name)
        return next((view.reason for view in views if view.status is SnapshotStatus.QUARANTINED), None)

    assert named in live.wait_for(refusal, "a capture that fails", SNAPSHOT_TIMEOUT_S)
    assert live.get(path) == expected(3)
