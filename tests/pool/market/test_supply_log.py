"""The log of what became of requests: nothing that was written is lost, whatever was torn."""

import subprocess
import sys
from pathlib import Path

import pytest

from glowplug.pool.identity import Purchase
from glowplug.pool.market.history import lives
from glowplug.pool.market.supply_log import Happened, SupplyLog, SupplyRecord
from glowplug.types.errors import ResourceExhausted, SystemUnfit


def record(
    happened: str, at_s: float, request: str = "r-1", region: str = "r", gpu: str = "L4"
) -> SupplyRecord:
    return SupplyRecord(
        at_s=at_s, request=request, happened=Happened(happened), cloud="gcp", region=region, machine="m",
        purchase=Purchase.SPOT, gpu=gpu,
    )  # fmt: skip


def test_records_come_back_in_order(tmp_path: Path) -> None:
    log = SupplyLog(tmp_path / "supply.jsonl")
    assert log.read() == []
    written = [record("asked", 1.0), record("granted", 700.0)]
    for one in written:
        log.append(one)
    assert SupplyLog(tmp_path / "supply.jsonl").read() == written


def test_a_line_that_a_crash_tore_disturbs_nothing_after_it(tmp_path: Path) -> None:
    path = tmp_path / "supply.jsonl"
    log = SupplyLog(path)
    log.append(record("asked", 1.0))
    with path.open("ab") as file:
        file.write(b'{"at_s": 2.0, "requ')
    log.append(record("granted", 3.0))
    assert [one.at_s for one in log.read()] == [1.0, 3.0]
    assert log.torn_lines == 1


def test_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "supply.jsonl"
    program = (
        "import sys; from pathlib import Path\n"
        "from glowplug.pool.market.supply_log import SupplyLog, SupplyRecord\n"
        "for at in range(50): SupplyLog(Path(sys.argv[1])).append(SupplyRecord(at_s=at, request=sys.argv[2],"
        " happened='asked', cloud='c', region='r', machine='m', purchase='spot', gpu='L4'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    log = SupplyLog(path)
    assert len(log.read()) == 100
    assert log.torn_lines == 0


def test_a_full_disk_is_an_error_and_the_log_stays_readable() -> None:
    with pytest.raises((ResourceExhausted, SystemUnfit)):
        SupplyLog(Path("/dev/full")).append(record("asked", 1.0))


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    for call in (SupplyLog(tmp_path).read, lambda: SupplyLog(tmp_path).append(record("asked", 1.0))):
        with pytest.raises(SystemUnfit):
            call()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    SupplyLog(tmp_path / "supply.jsonl").append(record("asked", 1.0))
    assert (tmp_path / "supply.jsonl").stat().st_mode & 0o077 == 0


def test_a_life_is_put_together_from_its_events() -> None:
    (life,) = lives([record("asked", 100), record("granted", 700), record("interrupted", 4_300)], 9_999).lives
    assert (life.lead_time_s, life.up_s) == (600, 3_600)
    assert (life.is_granted, life.is_interrupted, life.is_up, life.is_awaited) == (True, True, False, False)


def test_an_awaited_machine_has_waited_until_now() -> None:
    (life,) = lives([record("asked", 100)], 400).lives
    assert (life.lead_time_s, life.is_awaited) == (300, True)


def test_a_provider_that_grants_twice_or_contradicts_itself_gives_no_second_machine() -> None:
    twice = lives([record("asked", 0), record("granted", 60), record("granted", 90)], 100)
    assert [life.lead_time_s for life in twice.lives] == [60]
    both = lives([record("asked", 0), record("failed", 10), record("granted", 60)], 100)
    assert (both.lives, both.contradictions) == ((), 3)
    assert lives([record("granted", 60)], 100).contradictions == 1


def test_a_clock_that_jumped_gives_no_negative_times() -> None:
    (back,) = lives([record("asked", 1_000), record("granted", 400), record("given_back", 300)], 2_000).lives
    assert (back.lead_time_s, back.up_s) == (0, 0)
    (ahead,) = lives([record("asked", 1_000), record("granted", 10**9)], 2_000).lives
    assert ahead.lead_time_s == 1_000
