"""The ledger: all or nothing when killed, one leader, and nothing written by one who leads no more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.supply_log import Happened, SupplyRecord
from glowplug.pool.planner.decision import Event, EventKind
from glowplug.pool.planner.ledger import FILE_NAME, Ledger, LedgerView
from glowplug.pool.planner.state import FleetState, OpenOrder
from glowplug.types.errors import Conflict, InvalidInput, NotFound, SystemUnfit

POOL = PoolId("paper", "r", "m", Purchase.SPOT)


def record(number: int) -> SupplyRecord:
    return SupplyRecord(
        at_s=float(number), request=f"order-{number}", happened=Happened.ASKED, cloud="paper", region="r",
        machine="m", purchase=Purchase.SPOT, gpu="L4",
    )  # fmt: skip


def with_orders(state: FleetState, count: int) -> FleetState:
    orders = {f"order-{n}": OpenOrder(f"order-{n}", POOL, "L4", 1, 2.0, float(n)) for n in range(count)}
    return replace(state, ordered=count, orders=orders, stepped_at_s=float(count))


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    with Ledger.lead(tmp_path, "test", "0123abcd") as ledger:
        state = with_orders(ledger.load(), 3)
        ledger.commit(state, [record(1)], [Event(1.0, EventKind.ASKED, "order-1", "words")], b"{}")
    with Ledger.lead(tmp_path, "test", "ffffffff") as ledger:
        assert ledger.load() == state
        ((number, unlogged),) = ledger.unlogged()
        assert unlogged == record(1)
        ledger.logged(number)
        assert ledger.unlogged() == []
    view = LedgerView.read(tmp_path)
    assert (view.state, view.report, view.is_led) == (state, b"{}", False)
    assert [event.words for event in view.events] == ["words"]


def test_the_ledger_is_its_owners_alone(tmp_path: Path) -> None:
    with Ledger.lead(tmp_path / "pools", "test", "0123abcd"):
        modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "pools").iterdir()}
    assert set(modes.values()) == {0}, modes


def test_a_second_planner_is_refused_while_the_first_leads(tmp_path: Path) -> None:
    with Ledger.lead(tmp_path, "test", "0123abcd"):
        assert LedgerView.read(tmp_path).is_led
        with pytest.raises(Conflict, match="Another planner runs"), Ledger.lead(tmp_path, "test", "0123abcd"):
            pass


def test_who_was_overtaken_writes_nothing(tmp_path: Path) -> None:
    """As if the lock did not hold: on a file system that knows none, or a copy."""
    with Ledger.lead(tmp_path, "test", "0123abcd") as first:
        state = first.load()
        (tmp_path / "leader.lock").unlink()
        with Ledger.lead(tmp_path, "test", "0123abcd") as second:
            second.commit(with_orders(state, 1))
            with pytest.raises(Conflict, match="leads the fleet"):
                first.commit(with_orders(state, 5), [record(5)])
            assert second.load().ordered == 1
            assert second.unlogged() == []


def test_a_ledger_of_another_fleet_is_not_taken(tmp_path: Path) -> None:
    with Ledger.lead(tmp_path, "test", "0123abcd"):
        pass
    with pytest.raises(InvalidInput, match="of the fleet test"), Ledger.lead(tmp_path, "other", "0123abcd"):
        pass


def test_a_file_that_is_no_ledger_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No planner has run here"):
        LedgerView.read(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"not a database, and long enough to be looked at" * 50)
    with pytest.raises(SystemUnfit, match="cannot be used"), Ledger.lead(tmp_path, "test", "0123abcd"):
        pass
    with pytest.raises(SystemUnfit):
        LedgerView.read(tmp_path)


def test_old_events_are_dropped_and_new_ones_kept(tmp_path: Path) -> None:
    with Ledger.lead(tmp_path, "test", "0123abcd") as ledger:
        state = ledger.load()
        for batch in range(3):
            ledger.commit(
                state,
                events=[
                    Event(float(n), EventKind.ASKED, str(n), "")
                    for n in range(batch * 5_000, batch * 5_000 + 5_000)
                ],
            )
    events = LedgerView.read(tmp_path, 100_000).events
    assert len(events) == 10_000
    assert events[-1].subject == "14999"


WRITER = """
import sys
from pathlib import Path
from glowplug.pool.planner.ledger import Ledger
from tests.pool.planner.test_ledger import record, with_orders

with Ledger.lead(Path(sys.argv[1]), "test", "0123abcd") as ledger:
    state, count = ledger.load(), 0
    print("ready", flush=True)
    while True:
        count = (count + 7) % 400
        ledger.commit(with_orders(state, count), [record(n) for n in range(count)])
        ledger.logged(10**9)
"""


def test_kill_9_in_the_middle_of_commits_leaves_one_of_them_whole(tmp_path: Path) -> None:
    """Each commit has as many orders as it says; a half of one would not."""
    chance = random.Random(7)
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.0, 0.4))
        writer.send_signal(signal.SIGKILL)
        writer.wait(60)
        with Ledger.lead(tmp_path, "test", "0123abcd") as ledger:
            state = ledger.load()
            assert len(state.orders) == state.ordered
            unlogged = ledger.unlogged()
            assert len(unlogged) in (0, state.ordered)
            ledger.logged(10**9)
