"""Fetching over real HTTP from a distant server into a real SSD tier."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import blake3
import pytest
import zstandard
from tests.chunks.fetch_fakes import PATIENCE_S, Asker, MadeBlob

from glowplug.chunks.chunk import Chunk, ChunkMissing
from glowplug.chunks.fetch import Fetcher, Priority, RemoteBlob
from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.pack import Encoding, pack_key
from glowplug.chunks.placement import Place, Placement
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import Unavailable


@contextmanager
def range_server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves a folder as from 2 ms away, and its URL."""
    command = [sys.executable, "-m", "tests.chunks.range_server", str(folder), "--latency-s", "0.002"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server, f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> MadeBlob:
    """Small and large chunks in packs of 1 MiB and more, the compressible ones compressed."""
    rng = random.Random(4)
    sizes = [rng.choice([1, 700, 4096, 20_000, 300_000, 1 << 20]) for _ in range(200)]
    contents = [
        rng.randbytes(size) if rng.random() < 0.6 else (b"%09d" % rng.randrange(10**9) * size)[:size]
        for size in sizes
    ]
    contents = list(dict.fromkeys(contents))
    places: list[Place] = []
    packs: dict[str, bytes] = {}
    for start in range(0, len(contents), 30):
        bodies = []
        for content in contents[start : start + 30]:
            packed = zstandard.compress(content)
            is_smaller = len(packed) < len(content)
            bodies.append((packed, Encoding.ZSTD) if is_smaller else (content, Encoding.RAW))
        pack = b"".join(body for body, _ in bodies)
        pack_id, offset = blake3.blake3(pack).digest(), 0
        packs[pack_key(pack_id)] = pack
        for body, encoding in bodies:
            places.append(Place(pack_id, offset, len(body), encoding))
            offset += len(body)
    table = ChunkTable(ChunkTable.pack(map(Chunk.of, contents)))
    return MadeBlob(RemoteBlob(table, Placement(Placement.pack(places))), contents, packs)


@pytest.fixture(scope="module")
def region_folder(blob: MadeBlob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("region")
    for key, pack in blob.packs.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(pack)
    return folder


def test_readers_and_a_prefetch_get_everything_once(
    blob: MadeBlob, region_folder: Path, tmp_path: Path
) -> None:
    asker = Asker()
    with (
        range_server(region_folder) as (_, url),
        SsdStore(tmp_path / "ssd") as ssd,
        closing(HttpObjects(url)) as region,
        Fetcher(ssd, [region]) as fetcher,
    ):
        handle = fetcher.prefetch(blob.remote, random.Random(1).sample(range(len(blob.contents)), 150))

        def read(seed: int) -> None:
            for index in random.Random(seed).sample(range(len(blob.contents)), 60):
                priority = Priority(index % 3)
                fetcher.want(blob.remote, index, priority, asker.done((seed, index)))

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        asker.wait_for_count(4 * 60)
        assert handle.wait(PATIENCE_S)

        for (_, index), outcome in asker.outcomes.items():  # type: ignore[misc]
            assert outcome == blob.contents[index]
        stats = fetcher.stats()
        fetcher.close(PATIENCE_S)
        assert ssd.stats().chunks == fetcher.stats().tiers["region"].chunks
        assert (stats.failed, stats.unstored, stats.expired) == (0, 0, 0)
        for index, chunk in enumerate(blob.remote.table):
            if not ssd.missing([chunk]):
                assert ssd.get(chunk, PATIENCE_S) == blob.contents[index]


def test_a_server_that_is_killed_costs_errors_and_never_wrong_bytes(
    blob: MadeBlob, region_folder: Path, tmp_path: Path
) -> None:
    asker = Asker()
    count = len(blob.contents)
    with (
        SsdStore(tmp_path / "ssd") as ssd,
        range_server(region_folder) as (server, url),
        closing(HttpObjects(url, pause=lambda _seconds: None)) as region,
        Fetcher(ssd, [region]) as fetcher,
    ):
        for index in range(count):
            fetcher.want(blob.remote, index, Priority.READ, asker.done(index))
        asker.wait_for_count(10)
        server.kill()
        asker.wait_for_count(count)

        for index in range(count):
            outcome = asker.outcomes[index]
            assert isinstance(outcome, (Unavailable, ChunkMissing)) or outcome == blob.contents[index]
        with range_server(region_folder) as (_, new_url), closing(HttpObjects(new_url)) as restarted:
            with Fetcher(ssd, [region, restarted]) as second:
                assert second.prefetch(blob.remote, range(count)).wait(PATIENCE_S)
            assert ssd.missing(blob.remote.table) == []


def test_a_corrupt_pack_in_the_zone_is_healed_from_the_region(
    blob: MadeBlob, region_folder: Path, tmp_path: Path
) -> None:
    zone_folder = tmp_path / "zone"
    for key, pack in blob.packs.items():
        rotten = bytearray(pack)
        rotten[:: len(pack) // 7] = bytes(byte ^ 0xFF for byte in rotten[:: len(pack) // 7])
        (zone_folder / key).parent.mkdir(parents=True, exist_ok=True)
        (zone_folder / key).write_bytes(rotten)
    with (
        SsdStore(tmp_path / "ssd") as ssd,
        range_server(zone_folder) as (_, zone_url),
        range_server(region_folder) as (_, region_url),
        closing(HttpObjects(zone_url, tier="zone")) as zone,
        closing(HttpObjects(region_url)) as region,
        Fetcher(ssd, [zone, region]) as fetcher,
    ):
        assert fetcher.prefetch(blob.remote, range(len(blob.contents))).wait(PATIENCE_S)

        for index, content in enumerate(blob.contents):
            assert ssd.get(blob.remote.table[index], PATIENCE_S) == content
        tiers = fetcher.stats().tiers
        assert tiers["zone"].invalid == tiers["region"].chunks > 0


def test_a_store_with_too_little_room_still_serves_reads(
    blob: MadeBlob, region_folder: Path, tmp_path: Path
) -> None:
    with (
        SsdStore(tmp_path / "ssd", budget_bytes=4 << 20) as ssd,
        range_server(region_folder) as (_, url),
        closing(HttpObjects(url)) as region,
        Fetcher(ssd, [region]) as fetcher,
    ):
        for index in range(0, len(blob.contents), 5):
            assert fetcher.fetch(blob.remote, index, PATIENCE_S) == blob.contents[index]
