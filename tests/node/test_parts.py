"""The small parts of the agent, each on its own."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.node.live_agent import example_request
from tests.runtime.sandboxes import running

from glowplug.node import failures, logs
from glowplug.node.admission import check_request, is_replica_id
from glowplug.node.capacity import Capacity
from glowplug.node.exits import ExitWatch, read_exit_code
from glowplug.node.race import Interrupted, before
from glowplug.node.record import ReplicaFolder
from glowplug.node.table import ReplicaTable
from glowplug.runtime.bundle import SANDBOX_OVERHEAD_BYTES
from glowplug.snapshot.gpu.inventory import Device
from glowplug.types.chips import is_called
from glowplug.types.errors import InvalidInput, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.replica import (
    ReplicaState,
    ReplicaView,
)
from glowplug.types.spec import Resources

# -- racing --------------------------------------------------------------------------------------------------


async def test_work_that_is_done_first_gives_its_result() -> None:
    async def work() -> int:
        return 5

    assert await before(asyncio.Event().wait(), work()) == 5


async def test_an_event_that_comes_first_cancels_the_work_and_waits_for_its_end() -> None:
    cleaned_up = asyncio.Event()
    happened = asyncio.Event()

    async def work() -> None:
        happened.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    with pytest.raises(Interrupted):
        await before(happened.wait(), work())
    assert cleaned_up.is_set()


async def test_what_the_work_raises_is_raised_here() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await before(asyncio.Event().wait(), work())


async def test_cancelling_the_race_cancels_both() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    race = asyncio.create_task(before(asyncio.Event().wait(), work()))
    await started.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert cancelled.is_set()


# -- admission -----------------------------------------------------------------------------------------------


@given(st.text(max_size=80))
def test_an_accepted_id_is_safe_as_file_name_host_name_and_argument(text: str) -> None:
    if is_replica_id(text):
        assert text.isascii()
        assert 1 <= len(text) <= 63
        assert not set(text) & set("/\0. \n")
        assert not text.startswith("-")


def test_a_refused_secret_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_request(example_request(secrets={"NAME=": "the-value"}))
    assert "the-value" not in json.dumps(caught.value.to_dict())


# -- capacity ------------------------------------------------------------------------------------------------


def test_memory_is_promised_with_what_the_sandbox_takes_on_top() -> None:
    capacity = Capacity(cpus=2, memory_bytes=10 << 30)
    capacity.reserve("a", Resources(memory_bytes=4 << 30))
    assert capacity.memory_used_bytes == (4 << 30) + SANDBOX_OVERHEAD_BYTES
    capacity.reserve("b", Resources(memory_bytes=4 << 30))
    with pytest.raises(Unavailable, match=r"may use 2\.2 GiB .* and 1\.6 of 10\.0 GiB are free"):
        capacity.reserve("c", Resources(memory_bytes=2 << 30))
    capacity.release("a")
    capacity.release("a")
    capacity.reserve("c", Resources(memory_bytes=2 << 30))


def gpu(index: int, chip: str) -> Device:
    return Device(
        index=index,
        uuid=f"GPU-{index}",
        chip=chip,
        memory_bytes=80 << 30,
        free_bytes=80 << 30,
        is_persistent=True,
        is_mig=False,
    )


def test_gpus_are_promised_once_each_by_name_and_processors_are_shared() -> None:
    gpus = [gpu(0, "NVIDIA L4"), gpu(1, "NVIDIA H100 80GB HBM3"), gpu(2, "NVIDIA H100 80GB HBM3")]
    capacity = Capacity(cpus=2, memory_bytes=64 << 30, gpus=gpus)
    capacity.reserve("a", Resources(gpu="H100:2", cpus=2))
    assert capacity.gpus_of("a") == ("GPU-1", "GPU-2")
    with pytest.raises(Unavailable, match=r"needs 1 GPU.*0 of 2 are free"):
        capacity.reserve("b", Resources(gpu="H100"))
    capacity.reserve("c", Resources(cpus=2, gpu="l4"))
    assert capacity.gpus_of("c") == ("GPU-0",)
    assert capacity.cpus_used == 4
    assert capacity.gpus_used == 3


def test_a_replica_keeps_its_gpus_while_parked_and_a_trial_has_those_of_what_was_captured() -> None:
    capacity = Capacity(cpus=2, memory_bytes=64 << 30, gpus=[gpu(0, "NVIDIA L4"), gpu(1, "NVIDIA L4")])
    capacity.reserve("a", Resources(gpu="L4"))
    capacity.reserve("b", Resources(gpu="L4"))
    capacity.release("a")
    capacity.park("b", 1 << 30)
    capacity.reserve("b", Resources(gpu="L4"))
    assert capacity.gpus_of("b") == ("GPU-1",)
    capacity.hand_over("b", "b-trial")
    assert (capacity.gpus_of("b"), capacity.gpus_of("b-trial")) == ((), ("GPU-1",))
    capacity.gpus = [gpu(1, "NVIDIA L4")]  # the other has failed
    with pytest.raises(Unavailable, match="0 of 1 are free"):
        capacity.reserve("c", Resources(gpu="L4"))


def test_gpus_that_a_parked_replica_gave_up_are_promised_to_others_and_it_gets_its_own_if_it_can() -> None:
    capacity = Capacity(cpus=2, memory_bytes=64 << 30, gpus=[gpu(0, "NVIDIA L4"), gpu(1, "NVIDIA L4")])
    capacity.reserve("a", Resources(gpu="L4"))
    capacity.reserve("b", Resources(gpu="L4"))
    capacity.park("b", 1 << 30, keeps_gpus=False)
    assert capacity.gpus_used == 1
    capacity.release("a")
    capacity.reserve("b", Resources(gpu="L4"), ["GPU-1"])
    assert capacity.gpus_of("b") == ("GPU-1",)
    capacity.park("b", 1 << 30, keeps_gpus=False)
    capacity.reserve("c", Resources(gpu="L4:2"))
    capacity.release("c")
    capacity.reserve("d", Resources(gpu="L4"), ["GPU-1"])
    with pytest.raises(Unavailable, match="0 of 1 are free"):
        capacity.reserve("b", Resources(gpu="L4"), ["GPU-1"], can_move=False)
    assert capacity.gpus_of("b") == ()
    capacity.reserve("b", Resources(gpu="L4"), ["GPU-1"])
    assert capacity.gpus_of("b") == ("GPU-0",)


@pytest.mark.parametrize(
    ("chip", "names", "others"),
    [
        ("NVIDIA H100 80GB HBM3", ["H100", "h100-80gb"], ["H10", "H100-96GB", "L4"]),
        ("NVIDIA A100-SXM4-80GB", ["A100", "A100-80GB"], ["A10"]),
        ("NVIDIA L40S", ["L40S"], ["L4", "L40"]),
        ("NVIDIA GeForce RTX 4090", ["RTX-4090", "4090"], ["RTX-4080"]),
    ],
)
def test_a_chip_is_called_by_words_of_its_name(chip: str, names: list[str], others: list[str]) -> None:
    assert all(is_called(chip, name) for name in names)
    assert not any(is_called(chip, name) for name in others)


def test_an_adopted_replica_is_counted_even_if_it_no_longer_fits() -> None:
    capacity = Capacity(cpus=1, memory_bytes=1 << 30)
    capacity.hold("a", Resources(memory_bytes=2 << 30), [])
    with pytest.raises(Unavailable, match=r"and 0\.0 of 1\.0"):
        capacity.reserve("b", Resources(memory_bytes=32 << 20))


# -- failures ------------------------------------------------------------------------------------------------

TCP = """  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000
   1: 0100007F:0016 00000000:0000 0A 00000000:00000000
   2: 0100007F:1F90 0100007F:9999 01 00000000:00000000
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A
"""


def test_what_listens_is_told_by_port_and_reach() -> None:
    assert failures.listening_ports(TCP) == (
        "It listens on 22 (127.0.0.1 only), 3000 (127.0.0.1 only), 8080 (all addresses)."
    )
    assert failures.listening_ports("") == "It listens on no TCP port."


@given(st.text())
def test_a_hostile_table_of_sockets_is_never_an_exception(text: str) -> None:
    assert failures.listening_ports(text)


def test_a_full_disk_is_not_just_any_error() -> None:
    full = failures.from_system("It could not start", OSError(errno.ENOSPC, "No space left"))
    assert (full.code, full.message) == ("resource_exhausted", "It could not start: the disk is full.")
    assert failures.from_system("It", OSError(errno.EIO, "I/O error")).code == "internal"


# -- logs ----------------------------------------------------------------------------------------------------


@given(lines=st.lists(st.text(alphabet="ab\u00e9", max_size=30), max_size=40), wanted=st.integers(0, 50))
def test_the_tail_of_a_log_is_its_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], wanted: int
) -> None:
    log = tmp_path_factory.getbasetemp() / "tail.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    expected = lines[-wanted:] if wanted else []
    assert logs.tail(log, wanted) == "".join(f"{line}\n" for line in expected)


def test_the_tail_of_a_long_log_does_not_read_it_all(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 99 + b"\n" + b"y" * (300 << 10) + b"\nlast\n")
    assert logs.tail(log, 1) == "last\n"
    assert logs.tail(log, 2).startswith("yyy")
    assert logs.tail(tmp_path / "absent", 5) == ""


async def test_a_character_that_arrives_in_two_pieces_is_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes("é".encode()[:1])
    is_over = False
    stream = logs.follow(log, 5, lambda: is_over)
    seen = await anext(stream)
    with log.open("ab") as file:
        file.write("é".encode()[1:] + b"\n")
    is_over = True
    seen += "".join([piece async for piece in stream])
    assert seen == "é\n"


def test_rotation_keeps_two_older_pieces(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for content in ("one", "two", "three", "four"):
        log.write_text(content)
        assert logs.rotate(log, max_bytes=1)
        assert log.read_text() == ""
    assert [path.read_text() for path in sorted(tmp_path.glob("a.log.*"))] == ["four", "three"]
    assert not logs.rotate(log)
    assert not logs.rotate(tmp_path / "absent")


def test_only_the_newest_logs_of_the_dead_are_kept(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"r{number}.log").touch()
        (tmp_path / f"r{number}.log.1").touch()
        os.utime(tmp_path / f"r{number}.log", (number, number))
    logs.prune(tmp_path, living={"r0"}, keep=2)
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["r0.log", "r4.log", "r5.log"]
    assert len(list(tmp_path.glob("*.log.1"))) == 3


# -- exits and records ---------------------------------------------------------------------------------------


async def test_the_end_of_a_process_that_is_nobodys_child_here_is_seen_and_its_code_read(
    tmp_path: Path,
) -> None:
    with running(["sleep", "1000"]) as process:
        watch = ExitWatch(process.pid, tmp_path, watched_since=100.0)
        assert not watch.has_ended
        process.kill()
        await asyncio.wait_for(watch.wait(), 60)
    note = {"pid": process.pid, "exit_code": None, "signal": 9, "at": 101.0}
    (tmp_path / str(process.pid)).write_text(json.dumps(note))
    assert await watch.exit_code() == 137
    assert read_exit_code(tmp_path, process.pid, since=102.0) is None, "an older process of that number"


async def test_a_process_that_is_reaped_late_is_waited_for(tmp_path: Path) -> None:
    """By a supervisor that has no processor at the moment."""
    with running(["sleep", "1000"]) as process:
        watch = ExitWatch(process.pid, tmp_path, watched_since=0)
        process.kill()
        await watch.wait()
        asked = asyncio.create_task(watch.exit_code())
        await asyncio.sleep(2)
        assert not asked.done(), "nobody has reaped it yet"
        (tmp_path / str(process.pid)).write_text('{"exit_code": null, "signal": 9, "at": 1.0}')
        assert await asked == 137


async def test_one_that_nobody_notes_has_no_exit_code(tmp_path: Path) -> None:
    with running(["sleep", "1000"]) as process:
        watch = ExitWatch(process.pid, tmp_path, watched_since=0)
    await watch.wait()
    assert await watch.exit_code() is None


async def test_a_process_that_is_gone_already_has_ended(tmp_path: Path) -> None:
    with running(["sleep", "1000"]) as process:
        pass
    watch = ExitWatch(process.pid, tmp_path, watched_since=0)
    assert watch.has_ended
    watch.close()


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"at": "x"}', '{"at": 1e9, "exit_code": null}', "\x00"])
def test_a_note_that_is_not_sound_is_no_exit_code(tmp_path: Path, note: str) -> None:
    (tmp_path / "5").write_text(note)
    assert read_exit_code(tmp_path, 5, since=0) is None
    assert read_exit_code(tmp_path, None, since=0) is None


# -- the table -----------------------------------------------------------------------------------------------


def _view(replica_id: str, state: ReplicaState = ReplicaState.READY) -> ReplicaView:
    return ReplicaView(id=replica_id, app="a", server="s", deployment_id="d", state=state, created_at=0)


async def test_a_watcher_that_falls_behind_is_cut_off_and_others_are_not() -> None:
    table = ReplicaTable()
    slow, quick = table.watch(), table.watch()
    assert (await anext(slow)).type == "synced"
    assert (await anext(quick)).type == "synced"
    for number in range(5000):
        table.put(_view(f"r{number % 3}"))
        assert (await anext(quick)).type == "change"
    assert len([event async for event in slow]) == 4095, "what was kept for it, and then the end"
    table.end_watches()
    with pytest.raises(StopAsyncIteration):
        await anext(quick)


def test_what_is_told_later_has_a_larger_revision_also_by_a_later_agent() -> None:
    table = ReplicaTable()
    told = [table.put(_view("r1")), table.put(_view("r2")), table.change("r1", memory_bytes=1)]
    assert table.get("r1") == told[-1]
    told.append(ReplicaTable().put(told[0]))
    assert [view.revision for view in told] == sorted({view.revision for view in told})


def test_only_the_last_of_the_dead_are_remembered() -> None:
    table = ReplicaTable()
    for number in range(500):
        table.put(_view(f"r{number}", ReplicaState.STOPPED))
    table.put(_view("alive"))
    assert len(table.list()) == 201
    assert table.find("r0") is None
    assert table.find("r499") is not None


def test_a_folder_goes_while_the_commands_in_it_take_their_files_away(tmp_path: Path) -> None:
    folder = ReplicaFolder(StateDir(tmp_path), "shop-web-1")
    folder.create()
    files = [folder.execs / str(number) for number in range(2000)]
    for file in files:
        file.touch()
    with ThreadPoolExecutor(1) as commands:
        ends = commands.submit(lambda: [file.unlink(missing_ok=True) for file in reversed(files)])
        folder.remove()
        ends.result(timeout=120)
    assert not folder.path.exists()
    folder.remove()
