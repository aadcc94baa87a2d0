"""Whoever is killed, whenever: a read gives right bytes or an error, and the next mount finds a daemon."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.lazy.blob_content import BlobContent, short_state
from tests.image.lazy.blob_daemon import PATIENCE_S, Daemon, needs_fuse, read_at, running_daemon, wait_until

from glowplug.image.lazy.daemon_state import DaemonPaths, lock_owner
from glowplug.image.lazy.launch import ensure_daemon, holder_command, stop_daemon, worker_command
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.types.errors import Unavailable

pytestmark = needs_fuse

KILLS = 6
CONTENT = BlobContent.of_sizes([1 << 20] * 6 + [5000, 300_000] * 20, seed=3)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running_daemon() as daemon:
        yield daemon


class Readers:
    """Threads that read everywhere until told to stop, and note what was not right."""

    def __init__(self, path: Path, content: BlobContent, threads: int = 4) -> None:
        self.reads = 0
        self.wrong: list[object] = []
        self._path = path
        self._content = content
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(threads)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a read was never answered"

    def _read(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            offset = chance.randrange(len(self._content.blob))
            size_bytes = chance.randrange(1 << 20)
            try:
                is_right = (
                    read_at(self._path, offset, size_bytes)
                    == self._content.blob[offset : offset + size_bytes]
                )
            except OSError as problem:
                self.wrong.append(problem)
            else:
                self.reads += 1
                if not is_right:
                    self.wrong.append((offset, size_bytes))

    def wait_for_reads(self, more: int = 20) -> None:
        goal = self.reads + more
        wait_until(lambda: self.reads >= goal)


def test_workers_may_be_killed_under_load_without_a_read_noticing(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    with Readers(path, CONTENT) as readers:
        for _ in range(KILLS):
            readers.wait_for_reads()
            daemon.kill_worker()
        readers.wait_for_reads()
    assert readers.wrong == []
    assert daemon.client.ping().restarts == KILLS


def test_reads_that_wait_for_a_fetch_survive_the_workers_death(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT, range(1, 6))
    asked, release = daemon.region.hold(CONTENT, 0)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_at(path, 4096, 8192)))
    reader.start()
    assert asked.wait(PATIENCE_S)
    daemon.kill_worker()
    release.set()
    reader.join(PATIENCE_S)
    assert got == [CONTENT.blob[4096:12288]]


def test_an_open_file_and_its_attributes_outlive_workers(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    with path.open("rb") as file:
        before = path.stat()
        daemon.kill_worker()
        assert os.pread(file.fileno(), 100, 5) == CONTENT.blob[5:105]
        after = path.stat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)


def test_the_worker_goes_on_without_its_holder_and_gets_a_new_one(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    worker = daemon.client.ping().pid
    with Readers(path, CONTENT, threads=2) as readers:
        readers.wait_for_reads()
        holder = daemon.kill_holder()
        readers.wait_for_reads()
        ensure_daemon(daemon.state, PATIENCE_S)
        assert lock_owner(daemon.paths.holder_lock) not in (None, holder)
        assert daemon.client.ping().pid == worker
        daemon.kill_worker()
        readers.wait_for_reads()
    assert readers.wrong == []


def test_holders_and_workers_may_be_killed_in_turn(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    with Readers(path, CONTENT, threads=2) as readers:
        for _ in range(3):
            daemon.kill_holder()
            ensure_daemon(daemon.state, PATIENCE_S)
            daemon.kill_worker()
        readers.wait_for_reads()
    assert readers.wrong == []


def test_when_both_are_killed_reads_fail_and_the_next_daemon_starts_afresh(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT, range(1, 6))
    asked, release = daemon.region.hold(CONTENT, 0)
    errors: list[OSError] = []

    def read() -> None:
        try:
            read_at(path, 0, 4096)
        except OSError as problem:
            errors.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    assert asked.wait(PATIENCE_S)
    with path.open("rb") as opened:
        daemon.kill_all()
        reader.join(PATIENCE_S)
        assert [problem.errno in (errno.ECONNABORTED, errno.ENOTCONN) for problem in errors] == [True]
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pread(opened.fileno(), 4096, 1 << 21)
        with pytest.raises(OSError, match="not connected"):
            os.statvfs(path)
        release.set()
        ensure_daemon(daemon.state, PATIENCE_S)
        assert path.read_bytes() == CONTENT.blob
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pread(opened.fileno(), 4096, 1 << 21)


def test_many_who_find_it_dead_start_one_daemon(daemon: Daemon) -> None:
    daemon.kill_all()
    pids = []

    def ask() -> None:
        pids.append(ensure_daemon(daemon.state, PATIENCE_S).ping(PATIENCE_S).pid)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 6
    assert len(set(pids)) == 1


def test_a_worker_that_hangs_is_ended_by_the_next_holder(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    worker = daemon.client.ping().pid
    os.kill(worker, signal.SIGSTOP)
    daemon.kill_holder()
    ensure_daemon(daemon.state, PATIENCE_S)
    assert daemon.client.ping().pid != worker
    assert path.read_bytes() == CONTENT.blob


def test_stopping_takes_everything_away_also_while_it_is_in_use(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    with path.open("rb") as opened:
        assert stop_daemon(daemon.state)
        assert mounted_at(daemon.paths.blobs) is None
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pread(opened.fileno(), 4096, 0)
    assert lock_owner(daemon.paths.worker_lock) is None
    assert not daemon.paths.socket.exists()
    assert not stop_daemon(daemon.state)


def test_what_outlived_its_holder_is_stopped_too(daemon: Daemon) -> None:
    daemon.kill_holder()
    assert stop_daemon(daemon.state)
    assert mounted_at(daemon.paths.blobs) is None
    assert lock_owner(daemon.paths.worker_lock) is None


def test_an_aborted_connection_ends_the_daemon_and_the_next_one_serves(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    entry = mounted_at(daemon.paths.blobs)
    assert entry is not None
    connections = Path("/sys/fs/fuse/connections")
    if not any(connections.iterdir()):
        subprocess.run(["mount", "-t", "fusectl", "fusectl", str(connections)], check=True, timeout=60)
    (connections / entry.device.split(":")[1] / "abort").write_text("1")
    wait_until(lambda: lock_owner(daemon.paths.holder_lock) is None)
    ensure_daemon(daemon.state, PATIENCE_S)
    assert path.read_bytes() == CONTENT.blob


def test_a_filesystem_that_somebody_unmounted_is_told(daemon: Daemon) -> None:
    path = daemon.serve(CONTENT)
    with path.open("rb"):
        subprocess.run(["umount", "-l", str(daemon.paths.blobs)], check=True, timeout=60)
        with pytest.raises(Unavailable, match="unmounted"):
            ensure_daemon(daemon.state, PATIENCE_S)


def test_a_worker_that_cannot_start_is_told_with_its_last_words() -> None:
    with short_state() as state:
        try:
            with pytest.raises(Unavailable, match="no such thing"):
                ensure_daemon(state, 8.0, worker=["/bin/sh", "-c", "echo no such thing >&2; exit 1"])
        finally:
            assert stop_daemon(state)


def test_a_second_holder_leaves_the_first_alone(daemon: Daemon) -> None:
    second = subprocess.run(
        holder_command(daemon.state, worker_command(daemon.state)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2
    assert daemon.client.ping().restarts == 0


def test_the_holder_is_small(daemon: Daemon) -> None:
    holder = lock_owner(DaemonPaths(daemon.state).holder_lock)
    pages = int(Path(f"/proc/{holder}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 15 << 20
