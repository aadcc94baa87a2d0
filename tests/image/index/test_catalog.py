"""The images of a machine: wholly here or not at all, whoever else is at work and whatever is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.image.index.trees import describe, file, tree_of

from glowplug.image.index.catalog import Catalog
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.manifest import ImageConfig, ImageManifest
from glowplug.types.errors import InvalidInput, NotFound, ResourceExhausted
from glowplug.types.paths import StateDir

Parts = tuple[ImageManifest, bytes, bytes]


def image(seed: int = 1) -> Parts:
    index, chunks = write_index(tree_of({b"a": file(5, seed=seed), b"b": file()}))
    return ImageManifest.of(index, chunks, 3, ImageConfig(env={"SEED": str(seed)})), index, chunks


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.fixture
def catalog(state: StateDir) -> Catalog:
    return Catalog(state)


def everything_in(state: StateDir) -> list[str]:
    return sorted(str(path.relative_to(state.indexes)) for path in state.indexes.rglob("*"))


def test_what_was_added_is_found(catalog: Catalog, state: StateDir) -> None:
    manifest, index, chunks = image()
    folder = catalog.add(manifest, index, chunks)
    assert folder == catalog.get(manifest.image_digest)
    assert folder.path == state.indexes / manifest.image_digest
    assert (folder.index_path.read_bytes(), folder.chunks_path.read_bytes()) == (index, chunks)
    assert (folder.manifest, folder.digest) == (manifest, manifest.image_digest)
    assert list(folder.table()) == [file(5).extents[0].chunks[0]]
    assert describe(folder.tree()) == describe(tree_of({b"a": file(5), b"b": file()}))
    folder.verify()


def test_nothing_is_created_by_looking(catalog: Catalog, state: StateDir) -> None:
    with pytest.raises(NotFound):
        catalog.get("0" * 64)
    with pytest.raises(NotFound):
        catalog.resolve("vllm")
    assert (catalog.list(), catalog.digests(), catalog.names()) == ([], [], {})
    assert not state.root.exists()


def test_adding_twice_changes_nothing(catalog: Catalog) -> None:
    first = catalog.add(*image())
    first.placement_path.write_bytes(b"kept")
    assert catalog.add(*image()) == first
    assert first.placement_path.read_bytes() == b"kept"


def test_wrong_content_is_not_stored(catalog: Catalog, state: StateDir) -> None:
    manifest, index, chunks = image()
    for wrong in ((index[:-1] + b"x", chunks), (index, chunks + b"\0"), (chunks, index)):
        with pytest.raises(InvalidInput, match="not the one of its manifest"):
            catalog.add(manifest, *wrong)
    assert not state.indexes.exists()


def test_a_manifest_of_parts_that_do_not_belong_together_is_refused(catalog: Catalog) -> None:
    (_, index, _), (_, _, chunks) = image(), write_parts_of_another()
    with pytest.raises(InvalidInput, match="table"):
        catalog.add(ImageManifest.of(index, chunks, 3, ImageConfig()), index, chunks)
    manifest, index, chunks = image()
    with pytest.raises(InvalidInput, match="counts its bytes"):
        catalog.add(manifest.model_copy(update={"content_bytes": 6}), index, chunks)


def write_parts_of_another() -> Parts:
    index, chunks = write_index(tree_of({b"a": file(5000), b"b": file(9)}))
    return ImageManifest.of(index, chunks, 3, ImageConfig()), index, chunks


def test_images_are_listed_and_damaged_ones_left_out(catalog: Catalog) -> None:
    folders = sorted((catalog.add(*image(seed)) for seed in (1, 2, 3)), key=lambda folder: folder.digest)
    folders[1].index_path.write_bytes(b"short")
    assert catalog.list() == [folders[0], folders[2]]
    assert catalog.digests() == [folder.digest for folder in folders]


@pytest.mark.parametrize("name", ["manifest.json", "index.erofs", "chunks.bin"])
def test_a_damaged_image_is_told_and_replaced(catalog: Catalog, name: str) -> None:
    folder = catalog.add(*image())
    path = folder.path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInput):
        catalog.get(folder.digest)
    catalog.add(*image()).verify()


@pytest.mark.parametrize("name", ["index.erofs", "chunks.bin"])
def test_verify_finds_a_changed_byte(catalog: Catalog, name: str) -> None:
    folder = catalog.add(*image())
    content = bytearray((folder.path / name).read_bytes())
    content[50] ^= 1
    (folder.path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=name):
        catalog.get(folder.digest).verify()


def test_verify_counts_names(catalog: Catalog) -> None:
    manifest, index, chunks = image()
    folder = catalog.add(manifest.model_copy(update={"entries": 4}), index, chunks)
    with pytest.raises(InvalidInput, match="counts names"):
        folder.verify()


@pytest.mark.parametrize("name", ["manifest.json", "index.erofs"])
def test_a_link_or_nothing_in_place_of_a_file_is_damage(catalog: Catalog, tmp_path: Path, name: str) -> None:
    folder = catalog.add(*image())
    (folder.path / name).rename(tmp_path / name)
    with pytest.raises((InvalidInput, NotFound)):
        catalog.get(folder.digest)
    if name != "manifest.json":
        (folder.path / name).symlink_to(tmp_path / name)
        with pytest.raises(InvalidInput):
            catalog.get(folder.digest)


def test_a_removed_image_is_gone_with_its_names(catalog: Catalog, state: StateDir) -> None:
    folder, other = catalog.add(*image(1)), catalog.add(*image(2))
    catalog.name("one", folder.digest)
    catalog.name("two", other.digest)
    catalog.remove(folder.digest)
    assert (catalog.digests(), catalog.names()) == ([other.digest], {"two": other.digest})
    with pytest.raises(NotFound):
        catalog.remove(folder.digest)
    assert not any(folder.digest in path for path in everything_in(state))


def test_names_lead_to_digests_and_can_be_moved(catalog: Catalog) -> None:
    one, two = catalog.add(*image(1)).digest, catalog.add(*image(2)).digest
    catalog.name("team/vllm:1", one)
    assert catalog.resolve("team/vllm:1") == one
    catalog.name("team/vllm:1", two)
    assert catalog.names() == {"team/vllm:1": two}
    catalog.unname("team/vllm:1")
    for forget in (catalog.resolve, catalog.unname):
        with pytest.raises(NotFound):
            forget("team/vllm:1")


def test_only_what_is_here_can_be_named(catalog: Catalog) -> None:
    with pytest.raises(NotFound):
        catalog.name("vllm", "0" * 64)
    digest = catalog.add(*image()).digest
    for bad in ("../escape", "/etc/passwd", "UPPER", digest[:10]):
        with pytest.raises(InvalidInput):
            catalog.name(bad, digest)


def test_a_digest_may_be_shortened_while_it_is_unique(catalog: Catalog, state: StateDir) -> None:
    digest = catalog.add(*image()).digest
    assert catalog.resolve(digest) == catalog.resolve(digest[:8]) == digest
    (state.indexes / (digest[:63] + ("0" if digest[63] != "0" else "1"))).mkdir()
    with pytest.raises(InvalidInput, match="2 images"):
        catalog.resolve(digest[:12])
    assert catalog.resolve(digest) == digest
    with pytest.raises(NotFound):
        catalog.resolve("f" * 64)


@pytest.mark.parametrize("digest", ["..", "", "names", "A" * 64, "../" + "0" * 61])
def test_what_is_no_digest_is_no_image(catalog: Catalog, digest: str) -> None:
    catalog.add(*image())
    with pytest.raises(NotFound):
        catalog.get(digest)


def test_a_file_that_is_no_name_is_passed_over(catalog: Catalog, state: StateDir) -> None:
    digest = catalog.add(*image()).digest
    (state.indexes / ".names" / "broken").write_bytes(b"\xff" * 1000)
    (state.indexes / ".names" / "folder").mkdir()
    catalog.name("whole", digest)
    assert catalog.names() == {"whole": digest}


def test_many_at_once_add_and_name_and_remove(state: StateDir) -> None:
    parts = [image(seed) for seed in range(4)]
    start = threading.Barrier(8)

    def work(number: int) -> None:
        catalog = Catalog(state)
        start.wait(timeout=60)
        for manifest, index, chunks in parts:
            folder = catalog.add(manifest, index, chunks)
            catalog.name(f"name-{number}", folder.digest)
            assert catalog.get(folder.digest) == folder

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    catalog = Catalog(state)
    assert len(catalog.list()) == 4
    assert catalog.names() == {f"name-{number}": parts[-1][0].image_digest for number in range(8)}
    for folder in catalog.list():
        folder.verify()


REPOSITORY = Path(__file__).parents[3]
ADDER = """
import sys
from pathlib import Path
from glowplug.image.index.catalog import Catalog
from glowplug.types.paths import StateDir
from tests.image.index.test_catalog import image
catalog = Catalog(StateDir(Path(sys.argv[1])))
print("ready", flush=True)
for seed in range(10_000):
    folder = catalog.add(*image(seed))
    catalog.name("latest", folder.digest)
    print(folder.digest, flush=True)
    if seed % 2:
        catalog.remove(folder.digest)
"""


def test_killed_at_any_moment_it_leaves_whole_images_only(state: StateDir) -> None:
    catalog = Catalog(state)
    for after in (1, 2, 4, 7):
        process = subprocess.Popen(
            [sys.executable, "-c", ADDER, state.root], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        assert process.stdout is not None
        with process:
            for _ in range(after):
                process.stdout.readline()
            process.kill()
        for folder in catalog.list():
            folder.verify()
        assert len(catalog.list()) == len(catalog.digests())
    catalog.add(*image(1))
    left = {path.name for path in state.indexes.iterdir()} - set(catalog.digests())
    assert left == {".lock", ".names"}


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small], check=True, timeout=60)
    try:
        catalog = Catalog(StateDir(small))
        index, chunks = write_index(tree_of({b"%d" % n: file(uid=n << 8) for n in range(1000)}))
        manifest = ImageManifest.of(index, chunks, 1001, ImageConfig())
        with pytest.raises(ResourceExhausted):
            catalog.add(manifest, index, chunks)
        assert catalog.digests() == []
        assert sorted(path.name for path in (small / "indexes").iterdir()) == [".lock", ".names"]
    finally:
        subprocess.run(["umount", small], check=True, timeout=60)


def test_a_folder_is_opened_by_its_own_digest_only(catalog: Catalog) -> None:
    folder = catalog.add(*image())
    with pytest.raises(InvalidInput, match="not of 0000"):
        IndexFolder.open(folder.path, "0" * 64)
