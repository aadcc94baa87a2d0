"""Zone and region die, or lie, under reads of a lazy image that the kernel has mounted.

The blob daemon lives on. A read gives right bytes or EIO, never anything else, and when the servers are back
everything can be read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.chunks import zone_caches
from tests.chunks.servers import S3Server
from tests.image.lazy.blob_content import BlobContent
from tests.image.lazy.blob_daemon import needs_fuse, wait_until
from tests.image.lazy.node import PATIENCE_S, MountingNode, a_job, make_files
from tests.image.lazy.region_server import RegionServer, region_server

from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.chunks.zone_cache import ZoneCache
from glowplug.image import distribute
from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.daemon_state import DaemonPaths

pytestmark = needs_fuse

READERS = 3
FILES = 2 * READERS
FILE_BYTES = 1 << 20  # of one chunk each
PAUSE_S = 0.05  # of a reader between two files: what is killed is killed under reads


@dataclass
class Cloud:
    """nginx before an S3 server."""

    server: S3Server
    objects: ObstoreObjects
    cache: ZoneCache

    def content(self) -> dict[str, bytes]:
        """What the server holds, in memory only."""
        return {
            info.key: self.objects.read_all(info.key, info.size_bytes, PATIENCE_S)
            for prefix in ("images/", "packs/")
            for info in self.objects.list(prefix)
        }

    def bring_back(self, content: dict[str, bytes]) -> None:
        """Both servers, as they were."""
        self.server.start()
        self.server.make_bucket("bucket")
        for key, data in content.items():
            self.objects.write(key, data, PATIENCE_S)
        self.cache.up()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with ExitStack() as held:
        server = S3Server()
        held.callback(server.kill)
        objects = server.objects(server.make_bucket("bucket"), "images")
        held.callback(objects.close)
        origin_url = objects.origin_url()
        assert origin_url is not None
        cache = held.enter_context(zone_caches.running_cache(origin_url))
        monkeypatch.setenv("GLOWPLUG_REGION", objects.url)
        monkeypatch.setenv("GLOWPLUG_ZONE", zone_caches.url_of(cache))
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield Cloud(server, objects, cache)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MountingNode]:
    node = MountingNode(tmp_path)
    yield node
    node.close()


@dataclass
class Remote:
    """An image of which nothing is on this machine, mounted; and the hashes of its files."""

    path: Path
    hashes: dict[str, str]


def mount_remote(node: MountingNode, region: Region, folder: Path, *, files: int = FILES) -> Remote:
    noise = random.Random(str(folder))
    folder.mkdir()
    for number in range(files):
        (folder / f"{number}").write_bytes(noise.randbytes(FILE_BYTES))
    index = node.add_image(folder)
    distribute.push(index, f"{folder.name}:1", region, node.ssd, a_job())
    node.ssd.prune(0)
    assert len(node.ssd.missing(index.table())) == files
    return Remote(
        node.mounts("lazy").mount(index.digest).path, {path.name: hash_of(path) for path in folder.iterdir()}
    )


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Readers:
    """Threads that read all files of an image, each once, and what they found."""

    def __init__(self, image: Remote) -> None:
        self._image = image
        self._right: list[str] = []
        self._wrong: list[str] = []
        self._failed: list[int | None] = []
        self._first = threading.Event()
        names = sorted(image.hashes)
        self._threads = [
            threading.Thread(target=self._read, args=(names[first::READERS],)) for first in range(READERS)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                found = hash_of(self._image.path / name)
            except OSError as problem:
                self._failed.append(problem.errno)
            else:
                (self._right if found == self._image.hashes[name] else self._wrong).append(name)
            self._first.set()
            time.sleep(PAUSE_S)

    def wait_for_one(self) -> None:
        assert self._first.wait(PATIENCE_S), "no read was answered"

    def join(self) -> tuple[int, list[int | None], list[str]]:
        """How many were right; the errors; which were wrong."""
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a read was never answered"
        return len(self._right), self._failed, self._wrong


def test_kill_9_of_zone_and_region_under_reads_gives_right_bytes_or_errors(
    node: MountingNode, cloud: Cloud, tmp_path: Path
) -> None:
    region = Region(cloud.objects, tmp_path / "kept")
    images = [
        mount_remote(node, region, tmp_path / name, files=files)
        for name, files in (("all-up", FILES), ("no-zone", FILES), ("no-region", FILES), ("nobody", 1))
    ]
    content = cloud.content()
    assert Readers(images[0]).join() == (FILES, [], [])

    reading = Readers(images[1])
    reading.wait_for_one()
    zone_caches.kill(cloud.cache)
    assert reading.join() == (FILES, [], []), "the region was there"

    reading = Readers(images[2])
    reading.wait_for_one()
    cloud.server.kill()
    assert Readers(images[3]).join() == (0, [errno.EIO], [])
    _, failed, wrong = reading.join()
    assert wrong == []
    assert set(failed) <= {errno.EIO}

    cloud.bring_back(content)
    for image in images:
        assert Readers(image).join() == (len(image.hashes), [], [])


# --- servers that give other bytes than they should


@dataclass
class Liars:
    """An image whose chunks come from a zone and a region that falsify what they are told to."""

    node: MountingNode
    folder: IndexFolder
    original: Path
    path: Path
    content: BlobContent
    zone: RegionServer
    region: RegionServer

    def chunk_of(self, name: str) -> int:
        """The index of the only chunk of a file."""
        inode = self.folder.tree().lookup(name.encode())
        assert inode is not None
        return self.content.chunks.index(inode.extents[0].chunks[0])

    def metric(self, name: str) -> float:
        start = f"glowplug_blob_daemon_{name} "
        lines = self.node.daemon().metrics().splitlines()
        return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))

    def log(self) -> str:
        return DaemonPaths(self.node.state).log.read_text()


@pytest.fixture
def liars(node: MountingNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Liars]:
    original = make_files(tmp_path / "original")
    folder = node.add_image(original)
    content = BlobContent(tuple(bytes(node.ssd.get(chunk, PATIENCE_S)) for chunk in folder.table()))
    node.ssd.prune(0)
    with region_server() as zone, region_server() as region:
        zone.add(content)
        folder.placement_path.write_bytes(region.add(content))
        monkeypatch.setenv("GLOWPLUG_ZONE", zone.url)
        monkeypatch.setenv("GLOWPLUG_REGION", region.url)
        path = node.mounts("lazy").mount(folder.digest).path
        yield Liars(node, folder, original, path, content, zone, region)


def test_wrong_bytes_of_one_tier_cost_a_question_to_the_next(liars: Liars) -> None:
    wrong = liars.chunk_of("small-7")
    liars.zone.falsify(liars.content, wrong)
    _, release = liars.region.hold(liars.content, wrong)  # which a zone that is slow would ask by itself
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(hash_of, liars.path / "small-7")
        wait_until(lambda: liars.metric('tier_invalid_total{tier="zone"}') >= 1)
        release.set()
        assert reading.result(PATIENCE_S) == hash_of(liars.original / "small-7")
    assert liars.metric("failed_chunks_total") == 0
    assert liars.metric("read_errors_total") == 0


def test_wrong_bytes_of_every_tier_are_an_io_error_that_is_counted_and_logged(liars: Liars) -> None:
    wrong = liars.chunk_of("small-7")
    for server in (liars.zone, liars.region):
        server.falsify(liars.content, wrong)
    with pytest.raises(OSError, match="Input/output error") as failed:
        (liars.path / "small-7").read_bytes()
    assert failed.value.errno == errno.EIO
    for tier in ("zone", "region"):
        assert liars.metric(f'tier_invalid_total{{tier="{tier}"}}') >= 1
    assert liars.metric("failed_chunks_total") >= 1
    assert liars.metric("read_errors_total") >= 1
    name = liars.content.chunks[wrong].id.hex()[:16]
    assert f"Chunk {name} could not be fetched" in liars.log()
    assert "cannot be read" in liars.log()
    assert liars.node.ssd.missing([liars.content.chunks[wrong]]), "what is wrong is not kept"
    for other in sorted({path.name for path in liars.original.iterdir()} - {"small-7", "link"}):
        assert hash_of(liars.path / other) == hash_of(liars.original / other)
    for server in (liars.zone, liars.region):
        server.heal()
    descriptor = os.open(liars.path / "small-7", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert hash_of(liars.path / "small-7") == hash_of(liars.original / "small-7")
