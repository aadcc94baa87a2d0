"""kill -9 of everybody, at every step of a cold start, a capture and a restore, in both runtimes.

Meanwhile two callers are held: both must be answered, rightly, whatever is killed. Afterwards nothing of the
app may be left once it rests, and it must wake again. The steps are the runtimes' commands, as they happen.
The whole grid takes a quarter of an hour (``make faults``); a test run takes every few cases of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pytest
from tests.e2e import leftovers
from tests.e2e.clients import Clients, Told
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.image_root import make_python_root
from tests.e2e.live import Live
from tests.faults.shim import Shim
from tests.faults.strike import Strike

from glowplug.types.coldstart import Outcome
from glowplug.types.replica import SnapshotStatus

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(600)]

EVERY = 1 if os.environ.get("GLOWPLUG_FAULTS") == "all" else 23
CALLERS = 2
DAEMONS = ("worker", "holder", "daemon")
"""The blob daemon's two processes and both at once: it runs while an image is read for the first time."""


def strikes(runtime: str, who: str, *verbs: str) -> Iterator[Strike]:
    """Everybody, at each of these steps."""
    for verb in verbs:
        for moment in ("before", "during", "after"):
            yield Strike(runtime, who, verb, moment, "agent")
        victims = ["control", "command"]
        victims += [] if verb == "delete" else ["sandbox"]
        victims += ["criu"] if runtime == "runc" and verb in ("checkpoint", "restore") else []
        for victim in victims:
            yield Strike(runtime, who, verb, "during", victim)


def some_of(*groups: Iterable[Strike]) -> list[Strike]:
    """All of them, or every few."""
    return [strike for group in groups for strike in group][::EVERY]


STARTS = some_of(strikes("runsc", "serve", "create", "start"), strikes("runc", "serve", "create", "start"))
READS = some_of(
    Strike(runtime, "serve", "start", moment, victim)
    for runtime in ("runsc", "runc")
    for moment in ("during", "after")
    for victim in DAEMONS
)
CAPTURES = some_of(
    strikes("runsc", "capture", "create", "start", "checkpoint", "delete"),
    strikes("runsc", "trial", "restore", "delete"),
    strikes("runc", "capture", "create", "start", "checkpoint", "delete"),
    strikes("runc", "trial", "restore", "delete"),
)
RESTORES = some_of(strikes("runsc", "serve", "restore"), strikes("runc", "serve", "restore"))


def ask_under(strike: Strike, app: Deployed, shim: Shim) -> Told:
    """What callers are told who ask for an app that rests, while the strike happens."""
    shim.arm(strike, app.live.state)
    try:
        with Clients(app.live.url, [app.path + "/who"], CALLERS) as clients:
            clients.wait_for_answers(CALLERS)
            app.live.wait_for(shim.struck, f"the step {strike}")
            clients.wait_for_answers(CALLERS)
    finally:
        shim.disarm()
    return clients.told


def settle(live: Live, app: Deployed) -> None:
    """The agent is back, no capture is under way, and nothing of a resting app is left."""
    live.wait_for(lambda: live.get("/api/v1/status")["nodes"][0]["is_reachable"], "the agent")
    live.wait_for(
        lambda: all(view.status is not SnapshotStatus.CAPTURING for view in live.snapshots(app.name)),
        "the capture to end",
    )
    live.rest(app.name)
    live.wait_for(lambda: not leftovers.of_apps(live.state, [app.name]), "every trace to go")
    live.wait_for(lambda: not list(live.state.snapshot_staging.glob("sn-*")), "half a snapshot to go")


def assert_all_was_well(told: Told) -> None:
    assert told.wrong == told.refusals == told.unanswered == []


def assert_wakes_again(live: Live, app: Deployed) -> None:
    """By whatever way there is now; from its snapshot, if that is good."""
    has_good_snapshot = any(view.status is SnapshotStatus.GOOD for view in live.snapshots(app.name))
    assert app.ask("/who")["restored"] is has_good_snapshot
    assert live.cold_starts(app.name)[0].outcome is Outcome.ANSWERED


@pytest.mark.parametrize("strike", STARTS, ids=str)
def test_in_a_cold_start(live: Live, apps: Apps, shim: Shim, strike: Strike) -> None:
    app = apps.deploy(word="start", runtime=strike.runtime, snapshot=False)
    assert_all_was_well(ask_under(strike, app, shim))
    settle(live, app)
    assert app.ask()["version"] == "1"


@pytest.fixture(scope="module")
def image(live: Live, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image whose every file is read through the blob daemon until its mount has gone once."""
    live.cli("image", "import", str(make_python_root(tmp_path_factory.mktemp("image") / "root")), "root:1")
    return "root:1"


@pytest.mark.parametrize("strike", READS, ids=str)
def test_while_an_image_is_read(live: Live, apps: Apps, shim: Shim, image: str, strike: Strike) -> None:
    app = apps.deploy(word="read", image=image, runtime=strike.runtime, snapshot=False)
    assert_all_was_well(ask_under(strike, app, shim))
    settle(live, app)
    assert app.ask()["version"] == "1"


@pytest.mark.parametrize("strike", CAPTURES, ids=str)
def test_in_a_capture(live: Live, apps: Apps, shim: Shim, strike: Strike) -> None:
    app = apps.deploy(word="capture", runtime=strike.runtime)
    assert_all_was_well(ask_under(strike, app, shim))
    settle(live, app)
    assert_wakes_again(live, app)


@pytest.mark.parametrize("strike", RESTORES, ids=str)
def test_in_a_restore(live: Live, apps: Apps, shim: Shim, strike: Strike) -> None:
    app = apps.deploy(word="restore", runtime=strike.runtime)
    app.ask()
    live.wait_for_snapshot(app.name)
    live.rest(app.name)
    assert_all_was_well(ask_under(strike, app, shim))
    settle(live, app)
    assert_wakes_again(live, app)
