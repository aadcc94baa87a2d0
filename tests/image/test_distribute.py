"""Images from machine to machine: what is pushed can be pulled, and nothing else can."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.chunks.blobs import Held, held
from tests.chunks.servers import S3Server, http_server, serving

from glowplug.chunks.compression import compress
from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.packed_store import PackedStore
from glowplug.chunks.placement import Placement
from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.chunks.zone import ZoneObjects
from glowplug.image import distribute
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.manifest import ImageConfig, ImageManifest
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.image.job import Job
from glowplug.image.lazy import trace
from glowplug.types.clock import ManualClock
from glowplug.types.errors import DeadlineExceeded, InvalidInput, NotFound, Unavailable
from glowplug.types.paths import StateDir

TIMEOUT_S = 20.0
PACK_BYTES = 100_000


@dataclass
class Machine:
    """One with a catalog of its own."""

    catalog: Catalog

    @classmethod
    def at(cls, root: Path) -> Machine:
        return cls(Catalog(StateDir(root)))

    def add(self, source: Held, env: dict[str, str] | None = None) -> IndexFolder:
        """An image with one file for each of these pieces."""
        children = {
            f"file-{number}".encode(): Inode(
                stat.S_IFREG | 0o644, size_bytes=chunk.size_bytes, extents=(Extent(0, (chunk,)),)
            )
            for number, chunk in enumerate(source.content)
        }
        tree = Tree(Inode(stat.S_IFDIR | 0o755, children=children))
        index, chunks = write_index(tree)
        manifest = ImageManifest.of(index, chunks, len(children) + 1, ImageConfig(env=env or {}))
        return self.catalog.add(manifest, bytes(index), chunks)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def job(clock: ManualClock) -> Job:
    return Job(lambda text, fraction: None, clock, clock.monotonic() + 1000)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[ObstoreObjects]:
    made = ObstoreObjects(str(tmp_path / "region"))
    yield made
    made.close()


@pytest.fixture
def region(objects: ObstoreObjects, tmp_path: Path, clock: ManualClock) -> Region:
    return Region(objects, tmp_path / "kept", clock=clock, pause=clock.advance, pack_bytes=PACK_BYTES)


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine.at(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    return Machine.at(tmp_path / "there")


@pytest.fixture
def source() -> Held:
    return held([30_000] * 10)


@pytest.fixture
def image(here: Machine, source: Held, region: Region, job: Job) -> IndexFolder:
    """One that was pushed as ``team/app:1``."""
    folder = here.add(source)
    distribute.push(folder, "team/app:1", region, source, job)
    return folder


def same_files(one: IndexFolder, other: IndexFolder) -> bool:
    names = ("manifest.json", "index.erofs", "chunks.bin", "placement.bin")
    return all((one.path / name).read_bytes() == (other.path / name).read_bytes() for name in names)


@pytest.mark.parametrize("by", ["name", "digest", "prefix"])
def test_what_was_pushed_can_be_pulled(
    image: IndexFolder, there: Machine, region: Region, source: Held, job: Job, by: str
) -> None:
    asked = {"name": "team/app:1", "digest": image.digest, "prefix": image.digest[:10]}[by]
    result = distribute.pull(asked, region, there.catalog, job)
    pulled = there.catalog.get(image.digest)
    assert result["digest"] == image.digest
    assert 0 < result["bytes"] < 20_000
    assert same_files(image, pulled)
    pulled.verify()
    store = PackedStore(region.objects, pulled.table(), Placement.open(pulled.placement_path))
    assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in source.content.items())
    if by == "name":
        assert there.catalog.resolve("team/app:1") == image.digest


def test_pushing_again_sends_nothing_and_changes_nothing(
    image: IndexFolder, region: Region, source: Held, job: Job
) -> None:
    before = image.placement_path.read_bytes()
    result = distribute.push(image, "team/app:2", region, source, job)
    assert result == {"digest": image.digest, "sent_bytes": 0, "skipped_bytes": 300_000, "packs": 0}
    assert image.placement_path.read_bytes() == before
    assert distribute.refs(region.objects) == {"team/app:1": image.digest, "team/app:2": image.digest}


def test_another_machine_that_pushes_the_same_keeps_where_it_lies(
    image: IndexFolder, there: Machine, region: Region, source: Held, job: Job
) -> None:
    again = there.add(source)
    distribute.push(again, "app", region, Held([]), job)
    assert same_files(image, again)


def test_an_image_that_shares_content_sends_what_is_new(
    image: IndexFolder, here: Machine, there: Machine, region: Region, source: Held, job: Job
) -> None:
    other = Held([*source.content.values(), b"one more file" * 10])
    result = distribute.push(here.add(other), "other", region, other, job)
    assert (result["sent_bytes"], result["packs"]) == (130, 1)
    digest = distribute.pull("other", region, there.catalog, job)["digest"]
    pulled = there.catalog.get(digest)
    store = PackedStore(region.objects, pulled.table(), Placement.open(pulled.placement_path))
    assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in other.content.items())


def test_a_name_moves_to_the_image_that_was_pushed_last(
    image: IndexFolder, here: Machine, there: Machine, region: Region, job: Job
) -> None:
    newer = held([500], seed=7)
    folder = here.add(newer)
    distribute.push(folder, "team/app:1", region, newer, job)
    assert distribute.pull("team/app:1", region, there.catalog, job)["digest"] == folder.digest
    assert distribute.pull(image.digest, region, there.catalog, job)["digest"] == image.digest


def test_pulling_again_fetches_only_what_may_have_changed(
    image: IndexFolder, there: Machine, region: Region, job: Job
) -> None:
    first = distribute.pull("team/app:1", region, there.catalog, job)["bytes"]
    again = distribute.pull("team/app:1", region, there.catalog, job)["bytes"]
    assert again < first


def test_a_damaged_index_here_is_pulled_anew(
    image: IndexFolder, there: Machine, region: Region, job: Job
) -> None:
    distribute.pull("team/app:1", region, there.catalog, job)
    there.catalog.get(image.digest).index_path.write_bytes(b"damaged")
    distribute.pull("team/app:1", region, there.catalog, job)
    there.catalog.get(image.digest).verify()


def test_a_name_that_is_a_digest_gets_no_ref(here: Machine, region: Region, job: Job) -> None:
    source = held([100])
    folder = here.add(source)
    distribute.push(folder, folder.digest[:12], region, source, job)
    assert distribute.refs(region.objects) == {}


def test_compressed_content_is_pulled_as_well(
    here: Machine, there: Machine, region: Region, job: Job
) -> None:
    source = Held([b"many words " * 5000, *held([1000]).content.values()])
    result = distribute.push(here.add(source), "app", region, source, job, True)
    assert result["sent_bytes"] < 10_000
    pulled = there.catalog.get(distribute.pull("app", region, there.catalog, job)["digest"])
    store = PackedStore(region.objects, pulled.table(), Placement.open(pulled.placement_path))
    assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in source.content.items())


# --- traces


COMMAND = ["python3", "-m", "app"]


def test_traces_travel_with_the_image(
    image: IndexFolder, there: Machine, region: Region, source: Held, job: Job
) -> None:
    trace.save(image.path, trace.key_of(COMMAND), COMMAND, [3, 1, 2])
    (image.traces_path / "strange.json").write_text("{}")
    distribute.push(image, "team/app:1", region, source, job)
    distribute.pull("team/app:1", region, there.catalog, job)
    pulled = there.catalog.get(image.digest)
    found = trace.best(pulled.path, COMMAND, pulled.table())
    assert found is not None
    assert list(found.order) == [3, 1, 2]
    assert len(list(pulled.traces_path.iterdir())) == 1


def test_a_trace_of_ones_own_is_not_replaced(
    image: IndexFolder, there: Machine, region: Region, source: Held, job: Job
) -> None:
    key = trace.key_of(COMMAND)
    trace.save(image.path, key, COMMAND, [3, 1, 2])
    distribute.push(image, "team/app:1", region, source, job)
    distribute.pull(image.digest, region, there.catalog, job)
    pulled = there.catalog.get(image.digest)
    trace.save(pulled.path, key, COMMAND, [7])
    distribute.pull("team/app:1", region, there.catalog, job)
    found = trace.load(pulled.path, key, pulled.table())
    assert found is not None
    assert list(found.order) == [7]


def test_a_damaged_trace_is_done_without(
    image: IndexFolder, there: Machine, region: Region, source: Held, job: Job
) -> None:
    key = trace.key_of(COMMAND)
    trace.save(image.path, key, COMMAND, [3, 1, 2])
    distribute.push(image, "team/app:1", region, source, job)
    region.objects.write(f"images/{image.digest}/traces/{key}.json", b"garbage", TIMEOUT_S)
    distribute.pull("team/app:1", region, there.catalog, job)
    assert not there.catalog.get(image.digest).traces_path.exists()


# --- what is not as it should be


def bomb(size_bytes: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size_bytes))


FILES = ["manifest.json", "index.erofs.zst", "chunks.bin.zst", "placement.bin.zst"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "cut off", "empty", "garbage", "a bomb", "another image's"])
def test_a_file_that_is_not_the_images_is_refused(
    image: IndexFolder,
    here: Machine,
    there: Machine,
    region: Region,
    tmp_path: Path,
    job: Job,
    name: str,
    how: str,
) -> None:
    other_source = held([50] * 3, seed=9)
    other = here.add(other_source)
    distribute.push(other, "other", region, other_source, job)
    path = tmp_path / "region" / "images" / image.digest / name
    data = path.read_bytes()
    path.write_bytes(
        {
            "flipped": data[:40] + bytes([data[40] ^ 1]) + data[41:],
            "cut off": data[:-7],
            "empty": b"",
            "garbage": b"\0" * 500,
            "a bomb": bomb(64 << 20),
            "another image's": (path.parent.parent / other.digest / name).read_bytes(),
        }[how]
    )
    with pytest.raises((InvalidInput, Unavailable)):
        distribute.pull("team/app:1", region, there.catalog, job)
    if name == "placement.bin.zst":
        assert not there.catalog.get(image.digest).placement_path.exists()
    else:
        assert there.catalog.list() == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_not_found(
    image: IndexFolder, there: Machine, region: Region, job: Job, name: str
) -> None:
    region.objects.delete([f"images/{image.digest}/{name}"])
    with pytest.raises(NotFound):
        distribute.pull("team/app:1", region, there.catalog, job)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"[]", b"[" * 20_000, b"null", b'{"version": 2}', {"digest": 5},
     {"digest": "../../etc"}, {"digest": "0" * 64, "traces": "x"}, {"digest": "0" * 63}, b"x" * 100_000],
)  # fmt: skip
def test_a_damaged_ref_is_refused(
    image: IndexFolder, there: Machine, region: Region, job: Job, content: Any
) -> None:
    data = content if isinstance(content, bytes) else json.dumps({"version": 1, **content}).encode()
    region.objects.write("refs/team/app:1.json", data, TIMEOUT_S)
    with pytest.raises((InvalidInput, Unavailable)):
        distribute.pull("team/app:1", region, there.catalog, job)
    assert distribute.refs(region.objects) == {}


def test_trace_keys_of_a_ref_cannot_lead_elsewhere(
    image: IndexFolder, there: Machine, region: Region, job: Job
) -> None:
    ref = {"version": 1, "digest": image.digest, "traces": ["../../../x", 5, None, "a" * 32]}
    region.objects.write("refs/team/app:1.json", json.dumps(ref).encode(), TIMEOUT_S)
    distribute.pull("team/app:1", region, there.catalog, job)
    assert not there.catalog.get(image.digest).traces_path.exists()


@pytest.mark.parametrize("name", ["../x", "A", "a b", "", "/x", "x/../y", "a" * 300])
def test_a_bad_name_is_refused_before_anything_is_sent(
    here: Machine, region: Region, objects: ObstoreObjects, job: Job, name: str
) -> None:
    source = held([100])
    with pytest.raises(InvalidInput):
        distribute.push(here.add(source), name, region, source, job)
    with pytest.raises(InvalidInput):
        distribute.pull(name, region, here.catalog, job)
    assert list(objects.list("packs/")) == []


def test_what_nobody_pushed_is_not_found(there: Machine, region: Region, job: Job) -> None:
    for image in ("unknown", "0" * 64, "0" * 10):
        with pytest.raises(NotFound):
            distribute.pull(image, region, there.catalog, job)


def test_a_push_that_is_called_off_leaves_the_name_as_it_was(
    image: IndexFolder, here: Machine, region: Region, job: Job
) -> None:
    source = held([30_000] * 10, seed=5)
    folder = here.add(source)
    job.cancelled.set()
    with pytest.raises(Unavailable):
        distribute.push(folder, "team/app:1", region, source, job)
    assert distribute.refs(region.objects) == {"team/app:1": image.digest}
    assert list(region.objects.list("leases/")) == []


def test_a_pull_ends_with_its_job(
    image: IndexFolder, there: Machine, region: Region, job: Job, clock: ManualClock
) -> None:
    clock.advance(2000)
    with pytest.raises(DeadlineExceeded):
        distribute.pull("team/app:1", region, there.catalog, job)


# --- forgetting


def test_an_image_is_gone_with_its_last_name_and_its_packs_with_the_garbage(
    image: IndexFolder, region: Region, source: Held, job: Job, objects: ObstoreObjects
) -> None:
    distribute.push(image, "second", region, source, job)
    distribute.remove("second", region, job)
    region.gc(grace_s=0)
    assert distribute.refs(objects) == {"team/app:1": image.digest}
    assert len(list(objects.list("packs/"))) == 6
    distribute.remove("team/app:1", region, job)
    region.gc(grace_s=0)
    assert [list(objects.list(prefix)) for prefix in ("refs/", "images/", "packs/")] == [[], [], []]
    with pytest.raises(NotFound):
        distribute.remove("team/app:1", region, job)


def test_an_image_is_removed_by_digest_with_all_its_names(
    image: IndexFolder, region: Region, source: Held, job: Job, objects: ObstoreObjects
) -> None:
    distribute.push(image, "second", region, source, job)
    distribute.remove(image.digest, region, job)
    assert distribute.refs(objects) == {}
    assert list(objects.list("images/")) == []


def test_garbage_of_one_image_leaves_the_others_whole(
    image: IndexFolder, here: Machine, there: Machine, region: Region, source: Held, job: Job
) -> None:
    other = Held([*list(source.content.values())[:4], *held([30_000] * 6, seed=3).content.values()])
    distribute.push(here.add(other), "other", region, other, job)
    distribute.remove("team/app:1", region, job)
    assert region.gc(grace_s=0).removed_packs > 0
    pulled = there.catalog.get(distribute.pull("other", region, there.catalog, job)["digest"])
    store = PackedStore(region.objects, pulled.table(), Placement.open(pulled.placement_path))
    assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in other.content.items())


# --- elsewhere than in a folder


def test_an_image_is_pulled_over_http(
    image: IndexFolder, there: Machine, tmp_path: Path, job: Job, source: Held
) -> None:
    with http_server(serving(tmp_path / "region")) as server:
        objects = HttpObjects(server.url)
        result = distribute.pull("team/app:1", objects, there.catalog, job)
        assert result["digest"] == image.digest
        assert same_files(image, there.catalog.get(image.digest))
        with pytest.raises(InvalidInput, match="whole digest"):
            distribute.pull(image.digest[:12], ZoneObjects([server.url]), there.catalog, job)
        with pytest.raises(InvalidInput, match="only be read"):
            distribute.push(image, "app", Region(objects), source, job)
        objects.close()


def test_an_image_is_pulled_through_a_zone_whose_refs_and_placements_are_the_regions(
    image: IndexFolder, there: Machine, tmp_path: Path, job: Job, objects: ObstoreObjects
) -> None:
    stale = tmp_path / "stale"
    shutil.copytree(tmp_path / "region", stale)
    (stale / "refs" / "team" / "app:1.json").write_text('{"version": 1, "digest": "' + "0" * 64 + '"}')
    (stale / "images" / image.digest / "placement.bin.zst").write_bytes(compress(b"old"))
    with http_server(serving(stale)) as server:
        zone = ZoneObjects([server.url], objects)
        assert distribute.pull("team/app:1", zone, there.catalog, job)["digest"] == image.digest
        zone.close()
        names = [request.rpartition("/")[2] for request in server.requests]
        assert names == ["manifest.json", "index.erofs.zst", "chunks.bin.zst", "imports.bin.zst"]
    assert same_files(image, there.catalog.get(image.digest))


def test_an_image_goes_through_a_real_s3_api(
    here: Machine, there: Machine, tmp_path: Path, job: Job, clock: ManualClock
) -> None:
    s3 = S3Server()
    try:
        objects = s3.objects(s3.make_bucket("bucket"))
        region = Region(objects, tmp_path / "kept", clock=clock, pack_bytes=6 << 20)
        source = held([1 << 20] * 14)
        distribute.push(here.add(source), "team/app:1", region, source, job)
        assert distribute.refs(objects).keys() == {"team/app:1"}
        pulled = there.catalog.get(distribute.pull("team/app:1", region, there.catalog, job)["digest"])
        store = PackedStore(objects, pulled.table(), Placement.open(pulled.placement_path))
        assert all(store.get(chunk, TIMEOUT_S) == body for chunk, body in source.content.items())
        distribute.remove("team/app:1", region, job)
        assert region.gc(grace_s=0).removed_packs == 3
        objects.close()
    finally:
        s3.kill()
