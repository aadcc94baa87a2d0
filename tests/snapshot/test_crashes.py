"""kill -9 at any moment: the store holds the old generation or the new one, whole, and the rest is swept."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.types.errors import NotFound
from glowplug.types.paths import StateDir

from .conftest import garbage, open_store
from .crash_launcher import FILE_NAMES, KEY, commit

RANDOM_KILLS = 60
LONGEST_S, SLOWEST_DISK_S = 0.06, 5.0

pytestmark = pytest.mark.timeout(900)


class Launcher:
    """The process that forks the workers to be killed."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.snapshot.crash_launcher", str(root)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer in ("killed", "finished")
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=120)
        assert self._process.returncode == 0


@pytest.fixture
def launcher(state: StateDir) -> Iterator[Launcher]:
    launcher = Launcher(state.root)
    yield launcher
    launcher.close()


def number_in(store: SnapshotStore) -> int:
    """Which generation the store holds; fails unless all of it is of that one generation."""
    snapshot = store.get(KEY.id)
    snapshot.verify()
    number = snapshot.manifest.deployment
    for name in FILE_NAMES:
        assert (snapshot.open() / name).read_text() == number * 5000
    return int(number)


def test_killed_at_random_moments_the_store_is_never_broken(
    store: SnapshotStore, state: StateDir, launcher: Launcher
) -> None:
    rng = random.Random(20240729)
    commit(store, 0)
    last, longest_s = 0, LONGEST_S
    for round_number in range(1, RANDOM_KILLS + 1):
        first = round_number * 1000
        assert launcher.ask(f"random {first} {rng.uniform(0, longest_s)}") == "killed"
        number = number_in(store)
        assert number == last or first <= number < first + 1000
        last = number
        if not last:  # a disk that takes longer for a commit
            longest_s = min(1.5 * longest_s, SLOWEST_DISK_S)
        store.sweep()
        assert garbage(state) == []
        assert number_in(store) == last
    assert last > 0, "no commit ever got through: the delays are too short to prove anything"


def test_killed_before_any_step_of_a_commit_the_store_has_the_old_or_the_new(
    store: SnapshotStore, state: StateDir, launcher: Launcher
) -> None:
    commit(store, 0)
    last, outcomes = 0, set()
    for event in itertools.count(1):
        number = 10_000 + event
        answer = launcher.ask(f"step commit {number} {event}")
        found = number_in(store)
        assert found in (last, number)
        outcomes.add("new" if found == number else "old")
        store.sweep()
        assert garbage(state) == []
        assert number_in(store) == found
        last = found
        if answer == "finished":
            assert found == number
            break
    assert event > 30
    assert outcomes == {"old", "new"}


def test_killed_before_any_step_of_a_first_commit_there_is_nothing_or_all_of_it(
    store: SnapshotStore, state: StateDir, launcher: Launcher
) -> None:
    for event in itertools.count(1):
        answer = launcher.ask(f"step commit {event} {event}")
        store.sweep()
        assert garbage(state) == []
        if store.find(KEY) is not None:
            assert number_in(store) == event
            store.remove(KEY.id)
        if answer == "finished":
            break


def test_killed_before_any_step_of_a_removal_it_is_whole_or_gone(
    store: SnapshotStore, state: StateDir, launcher: Launcher
) -> None:
    commit(store, 0)
    for event in itertools.count(1):
        answer = launcher.ask(f"step remove 0 {event}")
        try:
            assert number_in(store) == 0
        except NotFound:
            store.sweep()
            assert garbage(state) == []
            commit(store, 0)
        else:
            assert answer == "killed", "a removal that was not killed removed nothing"
        if answer == "finished":
            break


def test_killed_before_any_step_of_counting_the_count_is_the_old_or_the_new(
    store: SnapshotStore, launcher: Launcher
) -> None:
    commit(store, 0)
    store.record_restore(KEY.id, ok=True)
    for event in itertools.count(1):
        before = store.view(KEY.id)
        answer = launcher.ask(f"step count_failure {event} {event}")
        after = store.view(KEY.id)
        assert after.restores == 1
        if answer == "finished":
            assert (after.failures, after.reason) == (before.failures + 1, f"failure {event}")
            break
        assert after.failures in (before.failures, before.failures + 1)
        assert "cannot be read" not in (after.reason or "")
        number_in(store)


def test_a_killed_capture_does_not_keep_the_next_one_out(
    store: SnapshotStore, state: StateDir, launcher: Launcher
) -> None:
    launcher.ask("step commit 1 20")
    commit(store, 2)
    assert number_in(store) == 2
    open_store(state).sweep()
    assert garbage(state) == []
