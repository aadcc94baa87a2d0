from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glowplug.snapshot.locks import FileLock, HeldLock, own_directory, share_directory


def must(lock: HeldLock | None) -> HeldLock:
    assert lock is not None
    return lock


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")
    with must(lock.try_acquire()):
        assert lock.try_acquire() is None
        assert lock.acquire(timeout_s=0.01) is None
    assert list(tmp_path.iterdir()) == []
    must(lock.acquire(timeout_s=1)).release()


def test_releasing_twice_does_not_release_somebody_else_s(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")
    first = must(lock.try_acquire())
    first.release()
    with must(lock.try_acquire()):
        first.release()
        assert lock.try_acquire() is None


def test_a_lock_whose_file_vanished_between_opening_and_locking_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(tmp_path / "x.lock")
    first = must(lock.try_acquire())
    taken_over: list[HeldLock] = []
    real_open = os.open

    def open_and_be_overtaken(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        monkeypatch.undo()
        first.release()
        taken_over.append(must(lock.try_acquire()))
        return descriptor

    monkeypatch.setattr(os, "open", open_and_be_overtaken)
    assert lock.try_acquire() is None
    taken_over.pop().release()


def test_many_threads_never_hold_it_together(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")
    holders: list[int] = []

    def work(number: int) -> int:
        with must(lock.acquire(timeout_s=60)):
            holders.append(number)
            seen = len(holders)
            holders.pop()
        return seen

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(work, range(120))) == {1}


def test_a_directory_is_shared_by_many_and_owned_by_one(tmp_path: Path) -> None:
    with must(share_directory(tmp_path)), must(share_directory(tmp_path)):
        assert own_directory(tmp_path) is None
    with must(own_directory(tmp_path)):
        assert share_directory(tmp_path) is None


def test_a_directory_that_is_gone_or_none_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("absent", "file", "link"):
        assert share_directory(tmp_path / name) is None


def test_locks_die_with_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from glowplug.snapshot.locks import FileLock, share_directory\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "held = FileLock(root / 'x.lock').try_acquire(), share_directory(root)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert FileLock(tmp_path / "x.lock").try_acquire() is None
        assert own_directory(tmp_path) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    must(FileLock(tmp_path / "x.lock").try_acquire()).release()
    must(own_directory(tmp_path)).release()
