"""What is killed, lost or broken under mounts: nothing wrong is read; the next mount or sweep mends it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.lazy.node import MountingNode, contents, kill_and_wait, make_files, start_container
from tests.image.lazy.small_image import needs_root

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.launch import stop_daemon

pytestmark = needs_root
PATIENCE_S = 60.0


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return make_files(tmp_path / "original")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MountingNode]:
    node = MountingNode(tmp_path)
    yield node
    node.close()


@pytest.fixture
def folder(node: MountingNode, original: Path) -> IndexFolder:
    return node.add_image(original)


# --- the daemon ---


@pytest.mark.parametrize("way", ["lazy", "loop"])
def test_a_mount_whose_daemon_died_fails_and_is_replaced(
    node: MountingNode, folder: IndexFolder, original: Path, way: str
) -> None:
    mounts = node.mounts(way)  # type: ignore[arg-type]
    path = mounts.mount(folder.digest).path
    with (path / "large").open("rb") as file:
        node.kill_daemon()
        with pytest.raises(OSError, match="Input/output error"):
            file.read()
        again = mounts.mount(folder.digest)
        assert (again.path, again.is_new) == (path, True)
        assert contents(path) == contents(original)
        with pytest.raises(OSError, match="Input/output error"):
            file.read()  # whoever had it open keeps the dead one
    mounts.unmount(folder.digest)
    mounts.sweep()
    node.assert_nothing_is_left(folder)


def test_a_stopped_daemon_is_started_by_the_next_mount(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts()
    path = mounts.mount(folder.digest).path
    stop_daemon(node.state)
    assert mounts.mount(folder.digest).is_new
    assert contents(path) == contents(original)


def test_a_worker_that_dies_is_not_noticed(node: MountingNode, folder: IndexFolder, original: Path) -> None:
    mounts = node.mounts()
    path = mounts.mount(folder.digest).path
    node.kill_worker()
    assert contents(path) == contents(original)
    assert not mounts.mount(folder.digest).is_new


def test_killing_the_daemon_again_and_again_under_load_never_gives_wrong_bytes(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts()
    expected = hashlib.sha256((original / "large").read_bytes()).digest()
    path = mounts.mount(folder.digest).path
    wrong: list[object] = []
    right = threading.Semaphore(0)
    is_over = threading.Event()

    def read_all_the_time() -> None:
        while not is_over.is_set():
            try:
                descriptor = os.open(path / "large", os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:  # between two mounts
                continue
            try:
                data = b"".join(os.pread(descriptor, 1 << 18, at) for at in range(0, 4 << 20, 1 << 18))
            except OSError as failed:
                if failed.strerror not in ("Input/output error", "Transport endpoint is not connected"):
                    wrong.append(failed)
            else:
                if hashlib.sha256(data).digest() == expected:
                    right.release()
                else:
                    wrong.append(len(data))
            finally:
                os.close(descriptor)

    readers = [threading.Thread(target=read_all_the_time) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(4):
            assert right.acquire(timeout=PATIENCE_S)
            if turn % 2:
                node.kill_daemon()
            else:
                node.kill_worker()
            mounts.mount(folder.digest)
            while right.acquire(blocking=False):
                pass
        assert right.acquire(timeout=PATIENCE_S)
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert wrong == []


def test_a_dead_mount_is_swept_away_without_starting_a_daemon(
    node: MountingNode, folder: IndexFolder
) -> None:
    mounts = node.mounts()
    mounts.mount(folder.digest)
    node.kill_daemon()
    swept = mounts.sweep()
    assert (swept.detached, swept.released) == ([folder.digest], [folder.digest])
    node.assert_nothing_is_left(folder)


def test_a_plain_mount_whose_process_died_is_replaced(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts("plain_fuse")
    path = mounts.mount(folder.digest).path
    kill_plain_server(folder.digest)
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        list(path.iterdir())
    again = mounts.mount(folder.digest)
    assert again.is_new
    assert contents(path) == contents(original)
    kill_plain_server(folder.digest)
    assert mounts.sweep().released == [folder.digest]
    node.assert_nothing_is_left(folder)


def kill_plain_server(digest: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            is_it = b"glowplug.image.lazy.plain_main" in words and digest.encode() in words
        except OSError:
            continue
        if is_it:
            kill_and_wait(int(process.name))


# --- the chunks ---


def test_a_graduated_image_never_reads_zeros_while_others_prune(
    node: MountingNode, folder: IndexFolder, original: Path, tmp_path: Path
) -> None:
    mounts = node.mounts()
    mounts.graduate(folder.digest)
    path = mounts.mount(folder.digest).path
    node.add_image(make_files(tmp_path / "other", seed=8))
    program = (
        "import pathlib, sys\n"
        "from glowplug.chunks.ssd import SsdStore\n"
        "with SsdStore(pathlib.Path(sys.argv[1])) as ssd:\n"
        "    for _ in range(20): print(ssd.prune(0).removed_chunks, flush=True)\n"
    )
    pruning = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, node.state.chunks], stdout=subprocess.PIPE
    )
    with pruning:
        while pruning.poll() is None:
            drop_cached_pages(path)
            assert contents(path) == contents(original)
        assert pruning.stdout is not None
        assert int(pruning.stdout.readline()) > 0
    assert pruning.returncode == 0


def drop_cached_pages(folder: Path) -> None:
    for file in folder.iterdir():
        if not file.is_symlink():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def test_once_unmounted_everything_can_be_pruned_and_the_next_mount_is_lazy(
    node: MountingNode, folder: IndexFolder
) -> None:
    mounts = node.mounts()
    mounts.graduate(folder.digest)
    mounts.mount(folder.digest)
    mounts.unmount(folder.digest)
    assert node.ssd.prune(0).used_bytes == 0
    mounted = mounts.mount(folder.digest)
    assert mounted.kind == "lazy"
    with pytest.raises(OSError, match="Input/output error"):
        (mounted.path / "large").read_bytes()  # there is no region that has it


def test_a_damaged_chunk_ends_graduation_and_is_not_punched_away_under_containers(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts()
    mounts.graduate(folder.digest)
    path = mounts.mount(folder.digest).path
    table = folder.table()
    chunk = next(chunk for chunk in table if chunk.size_bytes == 1 << 20)
    place = node.ssd.locate(chunk)
    assert place is not None
    good = node.ssd.get(chunk, PATIENCE_S)
    container = start_container(path)
    try:
        with node.ssd.pack_path(place.pack).open("r+b") as pack:
            pack.seek(place.offset)
            pack.write(b"damaged!")
        assert node.ssd.verify().damaged == 1
        again = mounts.mount(folder.digest)
        assert (again.kind, again.is_new) == ("lazy", True)
        node.ssd.put(chunk, good)
        node.ssd.flush()
        assert contents(path) == contents(original)
        node.ssd.prune(0)
        with node.ssd.pack_path(place.pack).open("rb") as pack:
            pack.seek(place.offset)
            assert pack.read(8 + 8) == b"damaged!" + good[8:16]
    finally:
        container.kill()
        container.communicate()


def test_a_lost_chunk_index_leaves_right_bytes_or_none(
    node: MountingNode, tmp_path: Path, original: Path
) -> None:
    kept, graduated = node.add_image(original), node.add_image(make_files(tmp_path / "other", seed=8))
    mounts = node.mounts()
    mounts.graduate(graduated.digest)
    mounts.mount(kept.digest)
    path = mounts.mount(graduated.digest).path
    container = start_container(path)
    try:
        node.ssd.close()
        for file in node.state.chunks.glob("index*db*"):
            if not file.is_symlink():
                file.write_bytes(b"garbage" * 1000)
        node.ssd = node.open_ssd()
        mounts = node.mounts()
        mounts.sweep()
        output, _ = container.communicate(b"large\n", timeout=60)
        expected = hashlib.sha256((tmp_path / "other" / "large").read_bytes()).hexdigest()
        assert output.split()[0].decode() in (expected, hashlib.sha256(b"").hexdigest())
    finally:
        container.kill()
    again = mounts.mount(graduated.digest)
    assert again.kind == "lazy"
    assert f"mount:{kept.digest}" in node.ssd.pins()
