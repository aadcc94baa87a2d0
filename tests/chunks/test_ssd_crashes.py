"""kill -9 at any moment: every chunk that the index knows is right, and no room stays taken."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chunks.content import TIMEOUT_S
from tests.chunks.ssd_launcher import BATCH, PACK_BYTES, body_of

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.ssd import SsdStore

RANDOM_KILLS = 30
_EXTENT_TREES_BYTES = 64 << 10  # what the filesystem itself may need for files full of holes


class Launcher:
    """The process that forks the workers to be killed."""

    def __init__(self, root: Path) -> None:
        script = Path(__file__).with_name("ssd_launcher.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@pytest.fixture
def launcher(ssd_root: Path) -> Iterator[Launcher]:
    launcher = Launcher(ssd_root)
    yield launcher
    launcher.close()


def taken_bytes(root: Path) -> int:
    return sum(pack.stat().st_blocks * 512 for pack in (root / "packs").iterdir())


def check(root: Path) -> int:
    """Everything known is right, and after a clean-up nothing else takes room; how many chunks there are."""
    with SsdStore(root, pack_bytes=PACK_BYTES) as store:
        report = store.verify()
        assert report.damaged == 0
        assert store.stats().chunks == report.chunks
        assert store.stats().index_resets == 0
        store.gc()
        assert taken_bytes(root) <= store.used_bytes() + _EXTENT_TREES_BYTES
        return report.chunks


@pytest.mark.parametrize("work", ["fill", "prune"])
def test_killed_at_random_moments_what_is_known_is_right(
    ssd_root: Path, launcher: Launcher, work: str
) -> None:
    rng = random.Random(20240806)
    found: set[int] = set()
    for longest_s in (0.12, 0.5, 2.0):  # longer if nothing got through: it proved nothing
        for round_number in range(RANDOM_KILLS):
            command = f"random {work} {round_number * 1000} {rng.uniform(0, longest_s)}"
            assert launcher.ask(command) == "killed"
            found.add(check(ssd_root))
        if len(found) > 1:
            return
    pytest.fail("nothing ever got through")


@pytest.mark.parametrize(
    "function",
    [
        "glowplug.chunks.ssd_packs:LockedPack.append",
        "os:fdatasync",
        "glowplug.chunks.ssd_rows:insert",
        "glowplug.chunks.ssd_rows:add_holes",
        "glowplug.chunks.ssd_rows:delete_holes",
        "glowplug.chunks.ssd_packs:PackFolder.punch",
        "glowplug.chunks.ssd_packs:PackFolder.delete",
        "glowplug.chunks.ssd_packs:PackFolder.create",
    ],
)
def test_killed_before_any_step_of_filling_and_pruning_what_is_known_is_right(
    ssd_root: Path, launcher: Launcher, function: str
) -> None:
    steps = itertools.chain([1, 2, 3, 5, 8, 13], itertools.count(21, 20))
    for step in steps:
        answer = launcher.ask(f"step empty {step} {function} {step}")
        check(ssd_root)
        if answer == "finished":
            assert step > 1, "the step was never taken: nothing was killed"
            return


def test_what_was_flushed_before_the_kill_is_there(ssd_root: Path, launcher: Launcher) -> None:
    flushed = 22  # numbers 0 to 21: `fill` flushes after every seventh
    assert launcher.ask(f"step fill 1 glowplug.chunks.ssd_packs:LockedPack.append {flushed + 1}") == "killed"
    with SsdStore(ssd_root) as store:
        bodies = [body_of(1, number) for number in range(flushed)]
        assert [store.get(Chunk.of(body), TIMEOUT_S) for body in bodies] == bodies
        assert len(bodies) < BATCH
