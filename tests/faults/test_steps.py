"""kill -9 of everybody, at every step of a cold start, a capture, a restore and a rest, in both runtimes.

Meanwhile two callers are held: both must be answered, rightly, whatever is killed. Afterwards nothing of the
app may be left once it rests, and it must wake again. The steps are the runtimes' commands, as they happen,
and what the kernel does to a cgroup. The whole grid takes half an hour (``make faults``); a test run takes a
few cases, which between them have every step in both runtimes and every victim.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
from tests.e2e import leftovers
from tests.e2e.clients import Clients, Told
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.image_root import make_python_root
from tests.e2e.live import Live
from tests.faults.shim import Shim
from tests.faults.strike import Strike
from tests.faults.victims import KINDS, kill
from tests.swap_file import swap_file

from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import SnapshotStatus

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(600)]

IS_WHOLE = os.environ.get("GLOWPLUG_FAULTS") == "all"
CALLERS = 2
DAEMONS = ("worker", "holder", "daemon")
"""The blob daemon's two processes and both at once: it runs while an image is read for the first time."""
STEPS_OF_REST = ("park", "push_out", "unpark")
SWAP_BYTES = 256 << 20
STEP_TIMEOUT_S = 60.0

SAMPLE = {
    "runsc-serve-create-during-control",
    "runc-serve-start-during-worker",
    "runsc-capture-checkpoint-during-agent",
    "runc-capture-checkpoint-during-criu",
    "runc-trial-restore-during-holder",
    "runsc-trial-delete-during-command",
    "runsc-serve-restore-during-sandbox",
    "runc-serve-restore-during-agent",
    "runc-serve-park-during-agent",
    "runsc-serve-unpark-during-sandbox",
}
"""What a test run takes."""


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


def daemon_strikes(who: str, verb: str, *moments: str) -> Iterator[Strike]:
    """The blob daemon, which shows the image that a replica stands on, in both runtimes."""
    for runtime in ("runsc", "runc"):
        for moment in moments:
            for victim in DAEMONS:
                yield Strike(runtime, who, verb, moment, victim)


def some_of(*groups: Iterable[Strike]) -> list[Strike]:
    """All of them, or those that a test run takes."""
    return [strike for group in groups for strike in group if IS_WHOLE or str(strike) in SAMPLE]


STARTS = some_of(strikes("runsc", "serve", "create", "start"), strikes("runc", "serve", "create", "start"))
READS = some_of(daemon_strikes("serve", "start", "during", "after"))
CAPTURES = some_of(
    strikes("runsc", "capture", "create", "start", "checkpoint", "delete"),
    strikes("runsc", "trial", "restore", "delete"),
    strikes("runc", "capture", "create", "start", "checkpoint", "delete"),
    strikes("runc", "trial", "restore", "delete"),
    daemon_strikes("capture", "start", "during"),
    daemon_strikes("capture", "checkpoint", "during"),
    daemon_strikes("trial", "restore", "during"),
)
RESTORES = some_of(
    strikes("runsc", "serve", "restore"),
    strikes("runc", "serve", "restore"),
    daemon_strikes("serve", "restore", "during"),
)
RESTS = some_of(
    Strike(runtime, "serve", step, "during", victim)
    for runtime in ("runsc", "runc")
    for step in STEPS_OF_REST
    for victim in ("agent", "control", "sandbox")
)


def test_a_test_run_leaves_out_no_kind_of_step_and_no_kind_of_victim() -> None:
    chosen = [strike for strike in STARTS + READS + CAPTURES + RESTORES + RESTS if str(strike) in SAMPLE]
    assert {str(strike) for strike in chosen} == SAMPLE, "each of them is in the grid"
    kinds = {"create": "begin", "start": "begin", "park": "rest", "unpark": "rest"}
    steps = {(strike.runtime, kinds.get(strike.verb, strike.verb)) for strike in chosen}
    assert steps >= {(r, v) for r in ("runsc", "runc") for v in ("begin", "checkpoint", "restore", "rest")}
    assert {verb for _, verb in steps} >= {"delete"}
    assert {strike.who for strike in chosen} == {"serve", "capture", "trial"}
    assert {strike.victim for strike in chosen} == KINDS.keys() - {"daemon"}, "which is two of them at once"


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
    live.wait_for(lambda: not leftovers.of_storage(live.state), f"{leftovers.of_storage(live.state)} to go")


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


def root_of(strike: Strike, request: pytest.FixtureRequest) -> str | None:
    """The image whose mount is to fail, where it is the blob daemon that is killed."""
    return str(request.getfixturevalue("image")) if strike.victim in DAEMONS else None


@pytest.mark.parametrize("strike", CAPTURES, ids=str)
def test_in_a_capture(
    live: Live, apps: Apps, shim: Shim, strike: Strike, request: pytest.FixtureRequest
) -> None:
    app = apps.deploy(word="capture", runtime=strike.runtime, image=root_of(strike, request))
    assert_all_was_well(ask_under(strike, app, shim))
    settle(live, app)
    assert_wakes_again(live, app)


@pytest.mark.parametrize("strike", RESTORES, ids=str)
def test_in_a_restore(
    live: Live, apps: Apps, shim: Shim, strike: Strike, request: pytest.FixtureRequest
) -> None:
    app = apps.deploy(word="restore", runtime=strike.runtime, image=root_of(strike, request))
    app.ask()
    live.wait_for_snapshot(app.name)
    live.rest(app.name)
    assert_all_was_well(ask_under(strike, app, shim))
    settle(live, app)
    assert_wakes_again(live, app)


def wait_closely(condition: Callable[[], object], what: str) -> None:
    """Look all the time: what happens now is over in milliseconds."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@pytest.mark.parametrize("strike", RESTS, ids=str)
def test_while_it_rests(live: Live, apps: Apps, strike: Strike) -> None:
    """Struck as soon as the kernel shows the step: frozen, going to swap, thawed."""
    pushes_out = strike.verb == "push_out"
    with swap_file(SWAP_BYTES) if pushes_out else contextlib.nullcontext():
        app = apps.deploy(
            word="rest",
            runtime=strike.runtime,
            snapshot=False,
            scaledown_window_s=0.5,
            parked_window_s=60,
            parked_memory="swap" if pushes_out else "keep",
        )
        app.ask()
        [replica] = live.replicas(app.name)
        cgroup = ReplicaCgroup(replica.id)
        wait_closely(lambda: cgroup.is_frozen, "it is parked")
        if pushes_out:
            wait_closely(cgroup.swapped_bytes, "its memory goes to swap")
        with contextlib.ExitStack() as stack:
            if strike.verb == "unpark":
                callers = stack.enter_context(Clients(live.url, [app.path + "/who"], CALLERS))
                wait_closely(lambda: not cgroup.is_frozen, "it is woken")
            assert kill(strike.victim, live.state.root, [replica.id])
            if strike.verb != "unpark":
                callers = stack.enter_context(Clients(live.url, [app.path + "/who"], CALLERS))
            callers.wait_for_answers(2 * CALLERS)
        assert_all_was_well(callers.told)
        settle(live, app)
        assert app.ask()["version"] == "1"
