"""A real nginx as a zone's cache, before a real S3 API: what it keeps, what it refuses, how it dies."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.chunks.blobs import held
from tests.chunks.servers import (
    Conversation,
    HttpServer,
    S3Server,
    http_server,
    serving,
)
from tests.chunks.zone_caches import (
    MAX_BYTES,
    TIMEOUT_S,
    cache_folder,
    kill,
    running_cache,
    started,
    url_of,
)
from tests.ports import free_port

from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.packed_store import PackedStore
from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.chunks.zone import ZoneObjects
from glowplug.chunks.zone_cache import ZoneCache, cache, processes
from glowplug.types.clock import SystemClock
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    InvalidInput,
    NotFound,
    SystemUnfit,
    Unavailable,
)

SLICE_BYTES = 1 << 20
CONTENT = os.urandom(SLICE_BYTES) * 2 + os.urandom(5000)
PACK = f"packs/ab/ab{'0' * 62}"
IMAGE = f"images/{'0' * 64}"


@pytest.fixture
def folder() -> Iterator[Path]:
    with cache_folder() as path:
        yield path


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[HttpServer]:
    for key in (PACK, f"{IMAGE}/index.erofs.zst", f"{IMAGE}/placement.bin.zst", "refs/name.json", "secret/x"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(CONTENT)
    with http_server(serving(tmp_path)) as server:
        yield server


@pytest.fixture
def zone_cache(origin: HttpServer, folder: Path) -> Iterator[ZoneCache]:
    made = started(origin.url, folder)
    yield made
    made.down()


@pytest.fixture
def zone(zone_cache: ZoneCache) -> Iterator[ZoneObjects]:
    made = ZoneObjects([url_of(zone_cache)])
    yield made
    made.close()


def ask(zone_cache: ZoneCache, method: str, target: str) -> http.client.HTTPResponse:
    host, port = zone_cache.status().listen.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    connection.request(method, target)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_a_range_comes_from_the_region_once_and_from_the_cache_after(
    origin: HttpServer, zone: ZoneObjects
) -> None:
    for _ in range(3):
        assert zone.read(PACK, 1000, 2000, TIMEOUT_S) == CONTENT[1000:3000]
    assert zone.read(PACK, 500_000, 10, TIMEOUT_S) == CONTENT[500_000:500_010]
    assert len(origin.requests) == 1
    assert (zone.counters.misses, zone.counters.hits) == (1, 3)


def test_slices_are_fetched_only_where_they_are_read(origin: HttpServer, zone: ZoneObjects) -> None:
    start, size = 2 * SLICE_BYTES - 100, 200
    assert zone.read(PACK, start, size, TIMEOUT_S) == CONTENT[start : start + size]
    asked = [head for head in origin.heads if b"range: bytes=0-" in head.lower()]
    assert len(origin.requests) == 2
    assert not asked


def test_a_whole_object_can_be_read(zone: ZoneObjects) -> None:
    for _ in range(2):
        assert zone.read_all(f"{IMAGE}/index.erofs.zst", 100 << 20, TIMEOUT_S) == CONTENT


def test_the_cache_survives_a_restart_and_a_dead_region(
    origin: HttpServer, zone_cache: ZoneCache, zone: ZoneObjects
) -> None:
    zone.read(PACK, 0, SLICE_BYTES, TIMEOUT_S)
    zone_cache.down()
    origin.stop()
    zone_cache.up()
    assert zone.read(PACK, 5, 10, TIMEOUT_S) == CONTENT[5:15]


@pytest.mark.parametrize("key", ["refs/name.json", f"{IMAGE}/placement.bin.zst"])
def test_what_may_be_replaced_is_passed_through(
    origin: HttpServer, tmp_path: Path, zone: ZoneObjects, key: str
) -> None:
    assert zone.read_all(key, 100 << 20, TIMEOUT_S) == CONTENT
    (tmp_path / key).write_bytes(b"replaced")
    assert zone.read_all(key, 100 << 20, TIMEOUT_S) == b"replaced"


def test_what_is_not_there_is_not_found_and_that_is_not_kept(
    origin: HttpServer, tmp_path: Path, zone: ZoneObjects
) -> None:
    late = PACK + ".index"
    with pytest.raises(NotFound):
        zone.read_all(late, 100, TIMEOUT_S)
    (tmp_path / late).write_bytes(b"now it is")
    assert zone.read_all(late, 100, TIMEOUT_S) == b"now it is"


@pytest.mark.parametrize(
    "target", ["/secret/x", "/", "/packs/../secret/x", "/packs/%2e%2e/secret/x", "/nginx.conf"]
)
def test_nothing_but_packs_images_and_refs_is_given(
    origin: HttpServer, zone_cache: ZoneCache, target: str
) -> None:
    assert ask(zone_cache, "GET", target).status in (400, 404)
    assert not [path for path in origin.requests if "secret" in path]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("target", [f"/{PACK}", "/refs/name.json", f"/{IMAGE}/placement.bin.zst"])
def test_nothing_can_be_changed_through_it(
    origin: HttpServer, zone_cache: ZoneCache, method: str, target: str
) -> None:
    assert ask(zone_cache, method, target).status in (403, 405)
    assert origin.requests == []


def test_head_does_not_spoil_what_is_kept(zone_cache: ZoneCache, zone: ZoneObjects) -> None:
    assert ask(zone_cache, "HEAD", f"/{PACK}").status == 200
    assert zone.read(PACK, 0, 100, TIMEOUT_S) == CONTENT[:100]


def test_many_who_want_one_slice_cause_one_request(origin: HttpServer, zone: ZoneObjects) -> None:
    may_answer = threading.Event()

    def behave(conversation: Conversation) -> None:
        may_answer.wait(TIMEOUT_S)
        conversation.give(CONTENT)

    origin.behaviour = behave
    results: list[bytes] = []
    readers = [
        threading.Thread(target=lambda: results.append(zone.read(PACK, 0, 100, TIMEOUT_S))) for _ in range(6)
    ]
    for reader in readers:
        reader.start()
    may_answer.set()
    for reader in readers:
        reader.join()
    assert results == [CONTENT[:100]] * 6
    assert len(origin.requests) == 1


def test_the_region_cannot_steer_the_cache(origin: HttpServer, zone: ZoneObjects) -> None:
    origin.behaviour = lambda conversation: conversation.give(
        CONTENT,
        {"Cache-Control": "no-store", "Set-Cookie": "a=b", "Vary": "*", "X-Accel-Redirect": "/secret/x"},
    )
    for _ in range(2):
        assert zone.read(PACK, 0, 10, TIMEOUT_S) == CONTENT[:10]
    assert len(origin.requests) == 1


def test_a_signature_is_passed_on_and_is_no_part_of_what_is_kept(
    origin: HttpServer, zone_cache: ZoneCache
) -> None:
    class Signing:
        tier = "region"
        number = 0

        def sign(self, key: str, expires_s: float) -> str:
            Signing.number += 1
            return f"https://bucket/{key}?X-Amz-Signature={self.number}"

    for _ in range(2):
        zone = ZoneObjects([url_of(zone_cache)], Signing())  # type: ignore[arg-type]
        zone.read(PACK, 0, 10, TIMEOUT_S)
        zone.close()
    assert origin.requests == [f"/{PACK}?X-Amz-Signature=1"]
    assert "Signature" not in (zone_cache.folder / "error.log").read_text()


# --- the whole stack


class SigningOnly:
    """A private region that cannot be read past the cache."""

    tier = "region"

    def __init__(self, objects: ObstoreObjects) -> None:
        self.sign = objects.sign

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes:
        raise Unavailable("It can be reached through the cache only.", remedy="")

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        raise Unavailable("It can be reached through the cache only.", remedy="")


def test_content_of_a_private_bucket_is_read_through_the_cache(tmp_path: Path, folder: Path) -> None:
    s3 = S3Server()
    try:
        objects = s3.objects(s3.make_bucket("bucket"))
        region = Region(objects, tmp_path / "kept", pack_bytes=3 << 20)
        source = held([700_000] * 12)
        with region.pushing() as lease:
            placement = region.push_chunks(source.table, source, lease).placement
        origin_url = objects.origin_url()
        assert origin_url is not None
        zone_cache = started(origin_url, folder)
        zone = ZoneObjects([url_of(zone_cache)], SigningOnly(objects))
        store = PackedStore(zone, source.table, placement)
        for _ in range(2):
            assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in source.content.items())
        s3.kill()
        assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in source.content.items())
        zone.close()
        objects.close()
        zone_cache.down()
    finally:
        s3.kill()


def test_kill_9_of_the_cache_under_reads_gives_no_wrong_byte_and_falls_through(
    tmp_path: Path, folder: Path, origin: HttpServer
) -> None:
    zone_cache = started(origin.url, folder)
    region = HttpObjects(origin.url)
    zone = ZoneObjects([url_of(zone_cache)], region)
    wrong: list[int] = []
    counts = [0] * 4
    stop = threading.Event()

    def read_on(reader: int) -> None:
        at = reader
        while not stop.is_set():
            at = (at + 7919) % (len(CONTENT) - 5000)
            if zone.read(PACK, at, 5000, TIMEOUT_S) != CONTENT[at : at + 5000]:
                wrong.append(at)
            counts[reader] += 1

    readers = [threading.Thread(target=read_on, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(3):
        kill(zone_cache)
        before = sum(counts)
        while sum(counts) < before + 20:
            assert all(reader.is_alive() for reader in readers)
            stop.wait(0.01)
        zone_cache.up()
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert zone.counters.region_reads > 0
    zone_cache.down()
    zone.close()
    region.close()


def test_one_of_three_caches_is_killed_under_reads_and_the_others_go_on(
    origin: HttpServer, tmp_path: Path
) -> None:
    content = random.Random(5).randbytes(24 << 20)  # six stripes: every cache has some
    (tmp_path / PACK).write_bytes(content)
    with ExitStack() as held:
        caches = [held.enter_context(running_cache(origin.url)) for _ in range(3)]
        urls = [url_of(cache) for cache in caches]
        zone = ZoneObjects(urls)  # there is no way past them
        held.callback(zone.close)
        stop, right = threading.Event(), threading.Semaphore(0)
        wrong: list[object] = []

        def read_on(seed: int) -> None:
            chance = random.Random(seed)
            while not stop.is_set():
                at = chance.randrange(len(content) - 100_000)
                try:
                    is_right = zone.read(PACK, at, 100_000, TIMEOUT_S) == content[at : at + 100_000]
                except GlowplugError as problem:
                    wrong.append(problem)
                    continue
                if is_right:
                    right.release()
                else:
                    wrong.append(at)

        readers = [threading.Thread(target=read_on, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        try:
            assert all(right.acquire(timeout=TIMEOUT_S) for _ in range(20))
            kill(caches[0])
            while not zone.skipped_servers:
                assert right.acquire(timeout=TIMEOUT_S)
            assert all(right.acquire(timeout=TIMEOUT_S) for _ in range(20))
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert zone.skipped_servers == urls[:1]
    assert wrong == []
    assert zone.counters.region_reads == 0


# --- starting and stopping


def test_up_and_down_may_be_called_again(zone_cache: ZoneCache) -> None:
    first = zone_cache.status()
    assert first.is_answering
    assert first.pid is not None
    assert zone_cache.up().pid == first.pid
    zone_cache.down()
    zone_cache.down()
    status = zone_cache.status()
    assert status.pid is None
    assert not status.is_answering
    assert processes.of_folder(zone_cache.folder) == []


def test_a_running_cache_takes_over_a_new_region(
    zone_cache: ZoneCache, zone: ZoneObjects, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "packs" / "cd"
    elsewhere.mkdir(parents=True)
    (elsewhere / "x").write_bytes(b"from elsewhere")
    with http_server(serving(tmp_path / "elsewhere")) as other:
        host_port = zone_cache.status().listen
        again = ZoneCache(other.url, host_port, zone_cache.folder, MAX_BYTES, min_free_bytes=1 << 20)
        pid = zone_cache.status().pid
        assert again.up().pid == pid
        assert eventually_reads(zone, "packs/cd/x") == b"from elsewhere"


def eventually_reads(zone: ZoneObjects, key: str) -> bytes:
    for _ in range(6000):  # old workers end once they have nothing to do
        with contextlib.suppress(GlowplugError):
            return zone.read_all(key, 100, TIMEOUT_S)
        threading.Event().wait(0.01)
    raise AssertionError(f"{key} never came")


def test_workers_that_a_killed_master_left_behind_are_ended(zone_cache: ZoneCache) -> None:
    master = zone_cache.status().pid
    assert master is not None
    processes.end([master], signal.SIGKILL, TIMEOUT_S, SystemClock().monotonic)
    assert zone_cache.status().pid is None
    assert zone_cache.up().is_answering


def test_a_pid_file_that_names_somebody_else_harms_nobody(zone_cache: ZoneCache) -> None:
    zone_cache.down()
    (zone_cache.folder / "nginx.pid").write_text(str(os.getpid()))
    assert zone_cache.status().pid is None
    zone_cache.down()
    assert zone_cache.up().is_answering


def test_a_port_that_is_taken_is_said(origin: HttpServer, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Conflict, match="cannot listen"):
        started(origin.url, folder, taken.getsockname()[1])


def test_a_region_whose_name_is_unknown_is_said(folder: Path) -> None:
    with pytest.raises((SystemUnfit, DeadlineExceeded), match="does-not-exist"):
        started("http://does-not-exist.invalid", folder)


def test_a_region_that_is_down_is_no_reason_not_to_start(folder: Path) -> None:
    zone_cache = started(f"http://127.0.0.1:{free_port()}", folder)
    zone = ZoneObjects([url_of(zone_cache)])
    with pytest.raises(Unavailable):
        zone.read(PACK, 0, 10, TIMEOUT_S)
    zone.close()
    zone_cache.down()


def test_a_region_spoken_to_by_tls_is_checked(folder: Path) -> None:
    zone_cache = started("https://localhost:1", folder)
    text = (zone_cache.folder / "nginx.conf").read_text()
    assert "proxy_ssl_verify on" in text
    zone_cache.down()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a folder to somebody else")
def test_a_folder_that_nginx_cannot_get_to_is_said(origin: HttpServer, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o700)
    with pytest.raises(InvalidInput, match="cannot get to"):
        started(origin.url, folder)


def test_a_machine_without_nginx_is_told_how_to_get_it(
    origin: HttpServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "NGINX_PLACES", "/nowhere")
    with pytest.raises(SystemUnfit) as caught:
        started(origin.url, folder)
    assert "apt-get install" in caught.value.remedy


@pytest.mark.parametrize(
    ("origin_url", "listen", "folder_name", "max_bytes"),
    [
        ("http://host;evil", "80", "/tmp/x", MAX_BYTES),
        ("http://host/a;b", "80", "/tmp/x", MAX_BYTES),
        ("s3://bucket", "80", "/tmp/x", MAX_BYTES),
        ("http://host", "80; evil", "/tmp/x", MAX_BYTES),
        ("http://host", "0", "/tmp/x", MAX_BYTES),
        ("http://host", "99999", "/tmp/x", MAX_BYTES),
        ("http://host", "unix:/tmp/x", "/tmp/x", MAX_BYTES),
        ("http://host", "80", '/tmp/x"; evil', MAX_BYTES),
        ("http://host", "80", "/tmp/$x", MAX_BYTES),
        ("http://host", "80", "/tmp/a b", MAX_BYTES),
        ("http://host", "80", "/tmp/x", 1000),
    ],
)
def test_nothing_gets_into_the_configuration_that_does_not_belong_there(
    origin_url: str, listen: str, folder_name: str, max_bytes: int
) -> None:
    with pytest.raises(InvalidInput):
        ZoneCache(origin_url, listen, Path(folder_name), max_bytes)


def test_the_status_tells_what_is_kept(zone_cache: ZoneCache, zone: ZoneObjects) -> None:
    zone.read(PACK, 0, SLICE_BYTES, TIMEOUT_S)
    deadline_s = time.monotonic() + TIMEOUT_S
    while (status := zone_cache.status()).cached_bytes <= SLICE_BYTES / 2:  # it keeps what it has answered
        assert time.monotonic() < deadline_s, status
        time.sleep(0.02)
    assert status.max_bytes == MAX_BYTES
