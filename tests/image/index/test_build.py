from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.image.index.nasty_folder import make_nasty_folder
from tests.image.index.real_tree import differences, write_blob
from tests.image.origin.origin_kit import OpenStore, a_job

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.memory import MemoryStore
from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.build import BuildResult, build_image
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.folder import FolderOrigin
from glowplug.image.origin.port import ContentSink
from glowplug.image.origin.tar import TarOrigin
from glowplug.types.errors import InvalidInput, NotFound, ResourceExhausted, Unavailable
from glowplug.types.paths import StateDir

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these files")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(StateDir(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "tool").write_bytes(os.urandom(2 * CHUNK_BYTES + 7))
    (folder / "text").write_text("text")
    (folder / "same text").write_text("text")
    return folder


def built(folder: Path, catalog: Catalog, store: OpenStore | None = None, **options: object) -> BuildResult:
    return build_image(FolderOrigin(folder), store or OpenStore(), catalog, a_job(), **options)  # type: ignore[arg-type]


def test_an_image_is_in_the_catalog_and_its_content_in_the_store(folder: Path, catalog: Catalog) -> None:
    store = OpenStore()
    result = built(folder, catalog, store, name="tools:1")
    index = catalog.get(result.digest)
    assert catalog.resolve("tools:1") == result.digest
    assert store.missing(index.table()) == []
    assert store.flushed
    assert (result.entries, result.content_bytes) == (5, 2 * CHUNK_BYTES + 7 + 4)
    assert result.new_bytes == result.content_bytes
    assert [path for path, _ in index.tree().walk()] == [b"/", b"/bin", b"/bin/tool", b"/same text", b"/text"]


def test_two_builds_of_one_tree_have_one_digest(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    first = built(folder, catalog)
    assert built(folder, catalog).digest == first.digest
    assert built(folder, Catalog(StateDir(tmp_path / "elsewhere"))).digest == first.digest


def test_a_second_build_puts_nothing_new(folder: Path, catalog: Catalog) -> None:
    store = OpenStore()
    built(folder, catalog, store)
    assert built(folder, catalog, store).new_bytes == 0


@needs_root
def test_a_folder_and_its_archive_are_the_same_image(catalog: Catalog, tmp_path: Path) -> None:
    nasty = tmp_path / "nasty"
    make_nasty_folder(nasty)
    (nasty / "special" / "socket").unlink()
    (nasty / "links" / "the same fifo").unlink()
    archive = tmp_path / "nasty.tar"
    subprocess.run(
        ["tar", "--sparse", "--format=posix", "--xattrs", "-C", nasty, "-cf", archive, "."],
        check=True,
        timeout=120,
    )
    from_archive = build_image(TarOrigin(archive), MemoryStore(), catalog, a_job())
    assert from_archive.digest == built(nasty, catalog).digest


@needs_root
def test_a_mounted_image_is_the_folder_it_was_made_of(
    catalog: Catalog, tmp_path: Path, mount_index: Callable[..., Path]
) -> None:
    nasty = tmp_path / "nasty"
    make_nasty_folder(nasty)
    store = OpenStore()
    index = catalog.get(built(nasty, catalog, store).digest)
    write_blob(tmp_path / "blob", index.table(), store.bodies)
    assert differences(nasty, mount_index(index.index_path.read_bytes(), [tmp_path / "blob"])) == []


def test_times_are_clamped_on_request(folder: Path, catalog: Catalog) -> None:
    os.utime(folder / "text", (100, 100))
    first = built(folder, catalog, clamp_to_s=1000)
    os.utime(folder / "same text", (2000, 2000))
    assert built(folder, catalog, clamp_to_s=1000).digest == first.digest
    times = {path: inode.mtime_ns for path, inode in catalog.get(first.digest).tree().walk()}
    assert times[b"/text"] == 100 * 10**9
    assert set(times.values()) == {100 * 10**9, 1000 * 10**9}


def test_a_given_order_puts_these_chunks_first(folder: Path, catalog: Catalog) -> None:
    plain = built(folder, catalog)
    last = list(catalog.get(plain.digest).table())[-1]
    ordered = built(folder, catalog, order=[Chunk.of(b"not in the image"), last])
    table = catalog.get(ordered.digest).table()
    assert table[0] == last
    assert sorted(chunk.id for chunk in table) == sorted(
        chunk.id for chunk in catalog.get(plain.digest).table()
    )


def test_the_configuration_is_part_of_the_image(folder: Path, catalog: Catalog) -> None:
    origin = FolderOrigin(folder, config=ImageConfig(env={"A": "1"}))
    result = build_image(origin, OpenStore(), catalog, a_job())
    assert catalog.get(result.digest).manifest.config.env == {"A": "1"}
    assert result.digest != built(folder, catalog).digest


def test_progress_is_told(folder: Path, catalog: Catalog) -> None:
    said: list[str] = []
    build_image(FolderOrigin(folder), OpenStore(), catalog, a_job(said))
    assert said[-1] == "writing the index"


class Failing:
    """An origin that gives up after some content went to the sink."""

    def __init__(self, error: Exception, content: bytes = b"some content") -> None:
        self.error = error
        self.content = content

    def describe(self) -> str:
        return "a test"

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        sink.add_contents([self.content])
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidInput("bad"), InvalidInput),
        (OSError(errno.ENOSPC, "full"), ResourceExhausted),
        (OSError(errno.EDQUOT, "quota"), ResourceExhausted),
        (OSError(errno.EIO, "broken"), OSError),
    ],
)
def test_a_failed_build_leaves_no_image(
    catalog: Catalog, error: Exception, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        build_image(Failing(error), OpenStore(), catalog, a_job(), name="half")
    assert catalog.list() == []
    with pytest.raises(NotFound):
        catalog.resolve("half")


def test_a_cancelled_build_leaves_no_image(folder: Path, catalog: Catalog) -> None:
    job = a_job()

    class Cancelling(OpenStore):
        def flush(self) -> None:
            job.cancelled.set()

    with pytest.raises(Unavailable):
        build_image(FolderOrigin(folder), Cancelling(), catalog, job)
    assert catalog.list() == []


def test_a_store_that_dropped_a_chunk_meanwhile_makes_no_image(folder: Path, catalog: Catalog) -> None:
    class Forgetful(OpenStore):
        def flush(self) -> None:
            self.bodies.popitem()

    with pytest.raises(ResourceExhausted, match="1 of its 4 chunks"):
        built(folder, catalog, Forgetful())
    assert catalog.list() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB, which only root can mount."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True, timeout=60)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True, timeout=60)


def test_a_full_disk_leaves_no_image_and_room_makes_one(small_disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    for number in range(12):
        (folder / str(number)).write_bytes(os.urandom(MIB))
    state = StateDir(small_disk / "state")
    catalog = Catalog(state)
    with SsdStore(state.chunks) as store:
        with pytest.raises(ResourceExhausted):
            build_image(FolderOrigin(folder), store, catalog, a_job())
        assert catalog.list() == []
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True, timeout=60)
        result = build_image(FolderOrigin(folder), store, catalog, a_job())
        table = catalog.get(result.digest).table()
        assert store.missing(table) == []


def test_a_budget_below_the_image_is_said(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    (folder / "big").write_bytes(os.urandom(12 * MIB))
    with SsdStore(tmp_path / "chunks", budget_bytes=4 * MIB) as store, pytest.raises(ResourceExhausted):
        build_image(FolderOrigin(folder), store, catalog, a_job())
    assert catalog.list() == []


def test_an_interrupted_build_leaves_no_image(folder: Path, tmp_path: Path) -> None:
    """A real process, killed while it puts chunks: the next build finds a sound store and catalog."""
    for number in range(40):
        (folder / f"file {number}").write_bytes(os.urandom(MIB))
    state = StateDir(tmp_path / "state")
    script = (
        "import itertools, sys, time; from pathlib import Path\n"
        "from glowplug.chunks.ssd import SsdStore\n"
        "from glowplug.image.index.build import build_image\n"
        "from glowplug.image.index.catalog import Catalog\n"
        "from glowplug.image.job import Job\n"
        "from glowplug.image.origin.folder import FolderOrigin\n"
        "from glowplug.types.clock import SystemClock\n"
        "from glowplug.types.paths import StateDir\n"
        "state = StateDir(Path(sys.argv[1])); clock = SystemClock()\n"
        "store = SsdStore(state.chunks); plain = store.put; count = itertools.count(1)\n"
        "def put(chunk, data):\n"
        "    plain(chunk, data)\n"
        "    if next(count) == 20: print('half', flush=True); time.sleep(600)\n"
        "store.put = put\n"
        "job = Job(lambda *_: None, clock, clock.monotonic() + 600)\n"
        "build_image(FolderOrigin(Path(sys.argv[2])), store, Catalog(state), job)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "state", folder], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
        finally:
            process.kill()
    catalog = Catalog(state)
    assert catalog.list() == []
    with SsdStore(state.chunks) as store:
        result = build_image(FolderOrigin(folder), store, catalog, a_job())
        for chunk in catalog.get(result.digest).table():
            chunk.verify(store.get(chunk, 5.0), store.tier)


def test_the_time_it_took_is_told(folder: Path, catalog: Catalog) -> None:
    started_s = time.monotonic()
    result = built(folder, catalog)
    assert 0 < result.seconds <= time.monotonic() - started_s
