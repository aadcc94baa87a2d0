"""Random kills under load, in both runtimes: no wrong answer, no caller forgotten, nothing left.

A test run does a few; ``make faults`` does 200.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from tests.e2e import leftovers
from tests.e2e.clients import Clients
from tests.e2e.conftest import Apps
from tests.e2e.image_root import make_python_root
from tests.e2e.live import Live
from tests.faults.random_kills import Killer, unclean
from tests.runtime.conftest import require_runc

KILLS = int(os.environ.get("GLOWPLUG_FAULT_KILLS", "8"))
SEED = int(os.environ.get("GLOWPLUG_FAULT_SEED", "20241124"))
CALLERS = 8
REST_S = 1.5
"""Mean pause of a caller: longer than it takes a server to scale to zero, so that starts never end."""

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(600 + 20 * KILLS)]


def deploy_all(apps: Apps, folder: Path) -> list[str]:
    """Servers that restore and ones that start cold, from the host's files and an image; their paths."""
    apps.live.cli("image", "import", str(make_python_root(folder / "root")), "root:1")
    kinds = {
        "gvisor": {"runtime": "runsc"},
        "runc": {"runtime": "runc"},
        "cold": {"runtime": "runsc", "snapshot": False, "image": "root:1"},
        "image": {"runtime": "runc", "image": "root:1"},
    }
    windows = {"scaledown_window_s": 0.5, "parked_window_s": 0.5}
    deployed = [apps.deploy(word=word, **windows, **kind) for word, kind in kinds.items()]
    return [app.path + path for app in deployed for path in ("/who", "/slow?seconds=0.2")]


def still_there(live: Live, apps: Apps) -> list[str]:
    """What the machine holds of apps that rest."""
    state = live.state
    found = leftovers.of_apps(state, apps.names)
    found += [f"staging {path.name}" for path in state.snapshot_staging.glob("sn-*")]
    found += [f"runtime {path}" for path in [*state.runsc_root.glob("*"), *state.runc_root.glob("*/*")]]
    return found


def test_random_kills_cost_no_answer_and_leave_nothing(tmp_path: Path) -> None:
    require_runc()
    rng = random.Random(SEED)
    with Live() as live:
        live.keeps_logs = True
        apps = Apps(live, tmp_path)
        paths = deploy_all(apps, tmp_path)
        killer = Killer(live.state, rng)
        pauses = random.Random(SEED + 1)
        started = time.monotonic()
        with Clients(live.url, paths, CALLERS, lambda: pauses.expovariate(1 / REST_S)) as clients:
            for _ in range(KILLS):
                killer.kill_one()
                time.sleep(killer.pause_s())
            clients.wait_for_answers(CALLERS)
        told = clients.told
        print(
            f"\n{killer.killed.total()} kills in {time.monotonic() - started:.0f} s: {dict(killer.killed)}; "
            f"{len(told.answers)} answers, {len(told.refusals)} refusals, "
            f"{len(told.broken_connections)} broken connections (the router was killed)"
        )
        for refusal in told.refusals:
            print("  refused:", refusal[:300])
        assert told.wrong == told.unanswered == unclean(told.refusals) == []
        for app in apps.names:
            live.rest(app)
        live.wait_for(
            lambda: not still_there(live, apps), f"traces to go: {still_there(live, apps)}", timeout_s=240
        )
        for path in paths[::2]:
            assert live.get(path)["version"] == "1"
        live.remove(apps.names)
        live.keeps_logs = False
