"""A disk that fills or fails while an agent captures: serving goes on, the reason shows, nothing stays."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.node.live_agent import LiveAgent, live_agent
from tests.runtime.conftest import RUNC_BY_NIGHT, require_runc
from tests.runtime.sandboxes import eventually

pytestmark = pytest.mark.sandbox

MIB = 1 << 20
ZRAM = Path("/sys/class/zram-control")
WARMUP = [{"method": "GET", "path": "/hold?mib=14"}] * 3
"""Asked up to three times each, to find out which answers repeat: all of it fits into the memory limit."""
DISK_BYTES = 384 * MIB
FEW_BLOCKS_BYTES = 4 * MIB
ROOM_BYTES = 48 * MIB
"""More than the agent asks for before a capture (a quarter of the memory limit), less than it then needs."""


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=120)


@contextmanager
def small_disk(folder: Path, target: Path) -> Iterator[None]:
    """An ext4 of its own at ``target``, on a loop device whose file lies on a tmpfs at ``folder``."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES + MIB}", "none", str(folder))
    try:
        file = folder / "disk"
        with file.open("wb") as made:
            made.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-m", "0", str(file))
        run("mount", "-o", "loop", str(file), str(target))
        try:
            yield
        finally:
            run("umount", "--lazy", str(target))
    finally:
        run("umount", "--lazy", str(folder))


class WornDisk:
    """A disk in compressed memory (zram), which answers writes with I/O errors beyond a limit set for it.

    The kernels at hand have none of what is made for this (dm-flakey, dm-error, fault injection).
    """

    def __init__(self) -> None:
        number = ZRAM.joinpath("hot_add").read_text().strip()
        self.device = Path(f"/dev/zram{number}")
        self._settings = Path(f"/sys/block/zram{number}")
        self._set("disksize", DISK_BYTES)

    def wear_out(self) -> None:
        """After a few more blocks, writing gives errors."""
        used_bytes = int(self._settings.joinpath("mm_stat").read_text().split()[2])
        self._set("mem_limit", used_bytes + FEW_BLOCKS_BYTES)

    def remove(self) -> None:
        """Nothing may use it any more."""
        eventually(self._is_removed, f"{self.device} is removed")

    def _is_removed(self) -> bool:
        try:
            ZRAM.joinpath("hot_remove").write_text(self.device.name.removeprefix("zram"))
        except OSError:  # a lazy unmount takes a moment
            return False
        return True

    def _set(self, name: str, number: int) -> None:
        self._settings.joinpath(name).write_text(str(number))


@contextmanager
def worn_disk(target: Path, *options: str) -> Iterator[WornDisk]:
    """An ext4 at ``target``; it has no journal, so that a lost block costs its file and not everything."""
    if not ZRAM.is_dir():
        pytest.skip("this kernel has no zram")
    worn = WornDisk()
    try:
        run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(worn.device))
        run("mount", "-o", ",".join(("errors=continue", *options)), str(worn.device), str(target))
        try:
            yield worn
        finally:
            if target.is_mount():
                run("umount", "--lazy", str(target))
    finally:
        worn.remove()


@pytest.fixture(params=RUNC_BY_NIGHT)
def runtime(request: pytest.FixtureRequest, fit_machine: None) -> str:
    if request.param == "runc":
        require_runc()
    return str(request.param)


def large_server(agent: LiveAgent) -> dict[str, object]:
    """A server whose capture does not fit."""
    return agent.server(snapshot={"warmup": WARMUP}, resources={"memory_bytes": 160 * MIB})


def capture_again(agent: LiveAgent, server: dict[str, object], view: dict[str, object]) -> dict[str, object]:
    """What became of a capture that somebody asked for by hand."""
    assert agent.client.post("/v1/snapshots", json=agent.request(server)).status_code == 202
    return agent.captured(view)


def test_a_disk_that_fills_is_the_reason_and_the_next_capture_has_room(
    root: Path, tmp_path: Path, runtime: str
) -> None:
    with small_disk(tmp_path / "disk", root), live_agent(root) as agent:
        agent.runtime = runtime
        filler = root / "filler"
        free_bytes = shutil.disk_usage(root).free
        run("fallocate", "--length", str(free_bytes - ROOM_BYTES), str(filler))
        server = large_server(agent)
        view = agent.start(server)
        captured = agent.captured(view)
        assert captured["status"] == "quarantined"
        assert "full" in str(captured["reason"])
        assert list(agent.state.snapshot_staging.glob("sn-*")) == []
        assert agent.ask(view) == "hello"
        filler.unlink()
        assert capture_again(agent, server, view)["status"] == "good"


def assert_given_up(agent: LiveAgent, view: dict[str, object], reason: str) -> None:
    """The capture failed for that reason, nothing of it runs, and the server serves."""
    captured = agent.captured(view)
    assert captured["status"] == "quarantined"
    assert re.search(f"(?i){reason}", str(captured["reason"])), captured["reason"]
    living = [one["id"] for one in agent.client.get("/v1/replicas").json() if not one["ended_at"]]
    assert living == [view["id"]]
    assert agent.ask(view) == "hello"


def test_a_disk_that_fails_while_memory_is_written_is_the_reason_and_on_another_it_works(
    root: Path, tmp_path: Path, runtime: str
) -> None:
    (root / "snapshots").symlink_to(tmp_path)
    # Without `sync` the runtime would hear of nothing: its pages would be in the page cache.
    with worn_disk(tmp_path, "sync") as worn, live_agent(root) as agent:
        agent.runtime = runtime
        server = large_server(agent)
        worn.wear_out()
        view = agent.start(server)
        assert_given_up(agent, view, "input/output error|i/o error")
        run("umount", "--lazy", str(tmp_path))  # below it is the folder of a good disk
        again = capture_again(agent, server, view)
        assert again["status"] == "good", again
        agent.stop(view["id"], grace_s=0)
        assert agent.start(server)["path"] == "cpu_snapshot"


def test_a_disk_that_fails_while_memory_is_brought_there_is_the_reason(root: Path, tmp_path: Path) -> None:
    (root / "chunks").symlink_to(tmp_path)
    with worn_disk(tmp_path) as worn, live_agent(root) as agent:
        server = large_server(agent)
        worn.wear_out()
        assert_given_up(agent, agent.start(server), "(input/output|disk i/o) error|does not hold this image")
        assert list(agent.state.snapshot_staging.glob("sn-*")) == []
