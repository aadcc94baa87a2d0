"""The small parts of the engine: back-off, exit notes, rotating logs, records, the listening socket."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.control.timings import Timings
from glowplug.engine.child import Backoff, Child
from glowplug.engine.exits import ExitNotes
from glowplug.engine.listener import listen
from glowplug.engine.processes import listener_of
from glowplug.engine.record import (
    SupervisorRecord,
    is_supervised,
    read_record,
    supervision,
    write_atomically,
)
from glowplug.engine.rotating_log import RotatingLog, tail
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Conflict, InvalidInput
from glowplug.types.paths import StateDir


def test_a_child_is_kept_from_variables_that_are_none_of_its_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOWPLUG_TEST_SECRET", "very-secret")
    monkeypatch.setenv("GLOWPLUG_TEST_OTHER", "there")
    with RotatingLog(tmp_path / "log") as log:
        child = Child("child", ["env"], log, ManualClock(), kept_from_it=frozenset({"GLOWPLUG_TEST_SECRET"}))
        output = child.start()
        os.set_blocking(output, True)
        with os.fdopen(output, "rb") as file:
            words = file.read().decode()
        assert child.pid is not None
        child.ended(os.waitpid(child.pid, 0)[1])
    assert "GLOWPLUG_TEST_OTHER=there" in words
    assert "very-secret" not in words


def test_backoff_doubles_up_to_its_limit() -> None:
    clock = ManualClock()
    backoff = Backoff(clock, first_s=0.1, longest_s=1.0)
    delays = [backoff.next_delay_s(clock.monotonic()) for _ in range(6)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_whatever_dies_is_back_before_a_held_request_gives_up() -> None:
    backoff = Backoff(ManualClock())
    assert max(backoff.next_delay_s(1_000_000.0) for _ in range(50)) < Timings().hold_slack_s / 2


def test_backoff_forgets_after_a_good_life() -> None:
    clock = ManualClock()
    backoff = Backoff(clock, first_s=0.1, good_life_s=30)
    for _ in range(5):
        backoff.next_delay_s(clock.monotonic())
    started_at = clock.monotonic()
    clock.advance(30)
    assert backoff.next_delay_s(started_at) == pytest.approx(0.1)


def test_backoff_never_overflows() -> None:
    backoff = Backoff(ManualClock())
    backoff.failures = 10_000
    assert backoff.next_delay_s(1_000_000.0) == backoff.longest_s


def test_exit_notes_tell_codes_from_signals(tmp_path: Path) -> None:
    notes = ExitNotes(tmp_path, ManualClock(5.0))
    notes.add(11, 3 << 8)
    notes.add(12, 9)
    assert json.loads((tmp_path / "11").read_text()) == {"pid": 11, "exit_code": 3, "signal": None, "at": 5.0}
    assert json.loads((tmp_path / "12").read_text()) == {"pid": 12, "exit_code": None, "signal": 9, "at": 5.0}


def test_only_the_newest_exit_notes_are_kept_across_restarts(tmp_path: Path) -> None:
    first = ExitNotes(tmp_path, ManualClock(), max_notes=5)
    for pid in range(1, 11):
        first.add(pid, 0)
        os.utime(tmp_path / str(pid), (pid, pid))
    second = ExitNotes(tmp_path, ManualClock(), max_notes=3)
    assert {entry.name for entry in tmp_path.iterdir()} == {"8", "9", "10"}
    second.add(8, 0)
    second.add(99, 0)
    assert {entry.name for entry in tmp_path.iterdir()} == {"8", "10", "99"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=60))
def test_a_rotating_log_is_bounded_and_holds_the_newest_bytes(tmp_path: Path, chunks: list[bytes]) -> None:
    path = tmp_path / "log"
    for old in tmp_path.iterdir():
        old.unlink()
    with RotatingLog(path, max_bytes=100, max_files=3) as log:
        for chunk in chunks:
            log.write(chunk)
    files = [f for f in (tmp_path / "log.2", tmp_path / "log.1", path) if f.exists()]
    kept = b"".join(file.read_bytes() for file in files)
    assert b"".join(chunks).endswith(kept)
    assert all(file.stat().st_size <= 100 for file in files)
    assert len(list(tmp_path.iterdir())) <= 3


def test_a_full_disk_loses_log_lines_but_not_the_writer() -> None:
    with RotatingLog(Path("/dev/full")) as log:
        log.write(b"no room")
        assert log.lost_bytes == 7


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert tail(tmp_path / "log", 2) == ["line 99998", "line 99999"]
    assert tail(tmp_path / "absent", 2) == []


@given(
    st.builds(
        SupervisorRecord, pid=st.integers(1, 2**22), host=st.text(max_size=20), port=st.integers(0, 65535),
        started_at=st.floats(0, 1e11),
    )
)  # fmt: skip
def test_a_record_survives_its_file(record: SupervisorRecord) -> None:
    assert SupervisorRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00" * 100])
def test_a_broken_record_counts_as_none(tmp_path: Path, content: str) -> None:
    state = StateDir(tmp_path)
    state.create()
    state.supervisor.write_text(content)
    assert read_record(state) is None


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("10.0.0.5", "http://10.0.0.5:1")],
)
def test_a_wildcard_address_is_reached_through_loopback(host: str, url: str) -> None:
    assert SupervisorRecord(pid=1, host=host, port=1, started_at=0).url == url


def test_a_state_directory_has_one_supervisor(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.create()
    assert not is_supervised(state)
    with supervision(state):
        assert is_supervised(state)
        with pytest.raises(Conflict), supervision(state):
            pass
    assert not is_supervised(state)


def test_an_atomic_write_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "one")
    write_atomically(tmp_path / "file", "two")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "two")]


def test_the_holder_of_a_port_is_found() -> None:
    with listen("127.0.0.1", 0) as listener:
        holder = listener_of(listener.getsockname()[1])
        assert holder is not None
        assert holder.pid == os.getpid()


@pytest.mark.parametrize(("host", "port"), [("no such host", 80), ("127.0.0.1", 99999)])
def test_a_bad_address_is_invalid_input(host: str, port: int) -> None:
    with pytest.raises(InvalidInput):
        listen(host, port)
