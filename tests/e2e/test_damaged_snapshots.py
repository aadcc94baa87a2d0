"""Snapshots whose bytes changed on the disk: the caller gets a right answer, the operator the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import Live
from tests.snapshot.kept_files import cut_off_the_pack, flip_a_bit, lose_the_index

from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.paths import StateDir
from glowplug.types.replica import SnapshotStatus, SnapshotView, StartPath

pytestmark = pytest.mark.sandbox


def counted_fallbacks(live: Live) -> float:
    """What ``/metrics`` says, whatever the reason."""
    lines = live.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("glowplug_fallbacks_total{"))


def answer_after_damage(live: Live, app: Deployed, snapshot_id: str) -> ColdStartRecord:
    """Wake ``app``: it must answer as it always does, and the fallback is counted. The record of how."""
    before = counted_fallbacks(live)
    assert app.ask()["version"] == "1"
    assert counted_fallbacks(live) == before + 1
    record = live.cold_starts(app.name)[0]
    assert record.outcome is Outcome.ANSWERED
    assert record.path is StartPath.COLD
    assert record.fallback_reason is not None
    assert snapshot_id in record.fallback_reason
    return record


def answer_from_a_new_one(live: Live, app: Deployed, damaged: SnapshotView) -> None:
    """The cold start's capture takes the damaged one's place, and is restored."""

    def is_whole_again() -> bool:
        views = live.snapshots(app.name)
        return any(v.status is SnapshotStatus.GOOD and v.created_at > damaged.created_at for v in views)

    live.wait_for(is_whole_again, "a new capture in place of the damaged one")
    live.rest(app.name)
    app.ask()
    assert live.cold_starts(app.name)[0].path is StartPath.CPU_SNAPSHOT


# Every kind of damage is in tests/node/test_bad_snapshots.py; here, what callers notice of one.
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (flip_a_bit, "bitflip"),
        pytest.param(cut_off_the_pack, "truncated", marks=pytest.mark.nightly),
        pytest.param(lose_the_index, "removed", marks=pytest.mark.nightly),
    ],
)
def test_a_damaged_snapshot_becomes_a_cold_start_with_a_reason(
    live: Live, apps: Apps, damage: Callable[[StateDir, str], None], word: str
) -> None:
    app = apps.deploy(word=word)
    app.ask()
    snapshot = live.wait_for_snapshot(app.name)
    live.rest(app.name)
    damage(live.state, snapshot.id)
    answer_after_damage(live, app, snapshot.id)
    answer_from_a_new_one(live, app, snapshot)


def test_a_damaged_snapshot_is_found_by_verify_and_replaced_by_a_new_capture(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="verify")
    app.ask()
    snapshot = live.wait_for_snapshot(app.name)
    live.cli("snapshot", "verify", snapshot.id)
    live.rest(app.name)
    flip_a_bit(live.state, snapshot.id)
    shown = live.cli("snapshot", "verify", snapshot.id, code=1)
    assert snapshot.id in shown.stderr
    answer_after_damage(live, app, snapshot.id)
    answer_from_a_new_one(live, app, snapshot)
