from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard
from tests import needs
from tests.image.index.trees import describe
from tests.image.origin.oci_images import (
    CONFIG,
    GZIP_LAYER,
    PLAIN_LAYER,
    ZSTD_LAYER,
    BlobFolder,
    digest_of,
    make_umoci_layout,
    run,
    simple_layout,
    tar_of,
    unpack_by_umoci,
)
from tests.image.origin.origin_kit import OpenStore, a_job, at, paths, read

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.origin.folder import FolderOrigin
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.oci_layout import LayoutOrigin
from glowplug.image.origin.oci_manifest import OCI_INDEX, OCI_MANIFEST
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound

AMD64 = Platform("linux", "amd64")


def origin(folder: Path, tag: str | None = None, **options: object) -> LayoutOrigin:
    options.setdefault("platform", AMD64)
    return LayoutOrigin(folder, tag, scratch=folder / "scratch", environ={}, **options)  # type: ignore[arg-type]


def config_of(folder: Path) -> ImageConfig:
    with ChunkSink(OpenStore()) as sink:
        return origin(folder).read(sink, a_job())[1]


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A layout by umoci, and what umoci unpacks from it."""
    needs.root("to unpack")
    needs.programs("umoci", "skopeo")
    work = tmp_path_factory.mktemp("umoci")
    layout = make_umoci_layout(work, work)
    return layout, unpack_by_umoci(layout, "app", work)


def test_an_image_of_many_layers_reads_as_umoci_unpacks_it(layered: tuple[Path, Path]) -> None:
    layout, unpacked = layered
    tree, store = read(origin(layout, "app"))
    expected, expected_store = read(FolderOrigin(unpacked))
    tree.root.mtime_ns = expected.root.mtime_ns  # no layer says anything of the root itself
    assert describe(tree) == describe(expected)
    assert store.content(at(tree, b"/var/sparse")) == expected_store.content(at(expected, b"/var/sparse"))


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_copy_by_skopeo_reads_the_same(
    layered: tuple[Path, Path], tmp_path: Path, compression: str
) -> None:
    layout, _ = layered
    copy = tmp_path / "copy"
    options = ["--dest-compress", "--dest-compress-format", compression, "--dest-decompress=false"]
    run("skopeo", "copy", *options, f"oci:{layout}:app", f"oci:{copy}:other")
    assert describe(read(origin(copy))[0]) == describe(read(origin(layout))[0])


def test_the_settings_come_along(layered: tuple[Path, Path]) -> None:
    config = config_of(layered[0])
    assert config.env["GREETING"] == "hello=world"
    assert (config.entrypoint, config.cmd) == (["/bin/program"], ["--now"])
    assert (config.workdir, config.user, config.labels) == ("/srv", "1000:1000", {"team": "images"})
    assert config.architecture == "amd64"


def test_umoci_really_made_whiteouts_and_an_opaque_directory(layered: tuple[Path, Path]) -> None:
    blobs = [blob.read_bytes() for blob in (layered[0] / "blobs" / "sha256").iterdir()]
    archives = b"".join(gzip.decompress(blob) for blob in blobs if blob.startswith(b"\x1f\x8b"))
    for name in (b"opt/.wh.gone", b"etc/conf.d/.wh.10-first", b"srv/data/.wh..wh..opq"):
        assert name in archives


def test_layers_of_any_compression_make_one_image(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    first, second, third = (tar_of({name: name.encode()}) for name in ("first", "second", "third"))
    layers = [
        (blobs.add(first, PLAIN_LAYER), digest_of(first)),
        (blobs.add(zstandard.compress(second), ZSTD_LAYER), digest_of(second)),
        # The type is wrong about it: the content tells.
        (blobs.add(zstandard.compress(third), GZIP_LAYER), digest_of(third)),
    ]
    blobs.publish(blobs.add_image(layers))
    assert paths(read(origin(tmp_path))[0]) == [b"/first", b"/second", b"/third"]


@pytest.mark.parametrize("is_last", [False, True])
def test_whiteouts_take_away_from_lower_layers_only_wherever_they_stand(
    tmp_path: Path, is_last: bool
) -> None:
    lower = tar_of({"a/old": b"1", "a/kept": b"1", "b/old": b"1", "c": b"old"})
    whiteouts: dict[str, bytes | None] = {"b/.wh..wh..opq": b"", "a/.wh.old": b"", ".wh.c": b""}
    content: dict[str, bytes | None] = {"b/new": b"2", "c": b"new", "a/new": b"2"}
    upper = tar_of({**content, **whiteouts} if is_last else {**whiteouts, **content})
    simple_layout(tmp_path, lower, upper)
    tree, store = read(origin(tmp_path))
    assert paths(tree) == [b"/a", b"/a/kept", b"/a/new", b"/b", b"/b/new", b"/c"]
    assert store.content(at(tree, b"/c")) == b"new"


def test_an_image_without_layers_is_empty(tmp_path: Path) -> None:
    simple_layout(tmp_path)
    assert paths(read(origin(tmp_path))[0]) == []


def test_settings_that_are_null_are_the_defaults(tmp_path: Path) -> None:
    simple_layout(tmp_path, config={"Env": None, "Cmd": None, "Labels": None, "WorkingDir": "", "User": None})
    assert config_of(tmp_path) == ImageConfig()


@pytest.mark.parametrize(
    "config",
    [
        {"Env": ["=x"]},
        {"Env": ["A=\0"]},
        {"Env": "A=b"},
        {"Cmd": ["a\0b"]},
        {"Labels": {"a": 1}},
        {"Labels": {"a": "x" * (600 << 10)}},
    ],
)
def test_settings_that_no_process_can_have_are_refused(tmp_path: Path, config: dict[str, object]) -> None:
    simple_layout(tmp_path, config=config)
    with pytest.raises(InvalidInput):
        read(origin(tmp_path))


def test_the_image_for_this_platform_is_chosen_from_an_index_in_an_index(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    images = []
    for architecture, variant in (("arm64", "v8"), ("amd64", ""), ("arm", "v6"), ("arm", "v7")):
        platform = {"os": "linux", "architecture": architecture} | ({"variant": variant} if variant else {})
        layer = blobs.add_layer(tar_of({f"{architecture}{variant}": b""}))
        images.append({**blobs.add_image([layer], platform=platform), "platform": platform})
    unknown = {"os": "unknown", "architecture": "unknown"}  # an attestation, as buildx adds them
    blobs.publish(blobs.add_index({**images[0], "platform": unknown}, *images))
    for wanted, name in (
        ("linux/amd64", b"/amd64"),
        ("linux/arm64", b"/arm64v8"),
        ("linux/arm64/v8", b"/arm64v8"),
        ("linux/arm/v7", b"/armv7"),
        ("linux/arm/v6", b"/armv6"),
    ):
        assert paths(read(origin(tmp_path, platform=Platform.parse(wanted)))[0]) == [name]
    for wanted in ("linux/arm/v5", "linux/riscv64", "windows/amd64"):
        with pytest.raises(InvalidInput, match="has no version for"):
            read(origin(tmp_path, platform=Platform.parse(wanted)))


def test_an_image_for_another_platform_is_refused_by_its_configuration(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    blobs.publish(blobs.add_image([], platform={"os": "linux", "architecture": "arm64"}))
    with pytest.raises(InvalidInput, match="linux/arm64, not for linux/amd64"):
        read(origin(tmp_path))
    read(origin(tmp_path, platform=Platform.parse("linux/arm64")))


def test_tags_tell_images_apart(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    images = [
        {
            **blobs.add_image([blobs.add_layer(tar_of({tag: b""}))]),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        for tag in ("one", "two")
    ]
    blobs.publish(*images, tag=None)
    assert paths(read(origin(tmp_path, "two"))[0]) == [b"/two"]
    with pytest.raises(InvalidInput, match="several images: one, two"):
        read(origin(tmp_path))
    with pytest.raises(NotFound, match="no image 'three'; it has one, two"):
        read(origin(tmp_path, "three"))


def test_a_damaged_blob_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    blobs = simple_layout(tmp_path, tar_of({"file": bytes(range(256)) * 40}))
    for path in (tmp_path / "blobs" / "sha256").iterdir():
        good = path.read_bytes()
        for bad in (
            good[:-1],
            good[: len(good) // 2],
            b"",
            good + b"\0",
            good + good,
            bytes([good[0] ^ 1]) + good[1:],
            good[:-3] + bytes([good[-3] ^ 4]) + good[-2:],
        ):
            path.write_bytes(bad)
            with pytest.raises(InvalidInput):
                read(origin(tmp_path))
        path.write_bytes(good)
    read(origin(blobs.folder))


def test_an_archive_that_is_not_the_configured_one_is_refused(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    descriptor, _ = blobs.add_layer(tar_of({"file": b"this"}))
    blobs.publish(blobs.add_image([(descriptor, digest_of(tar_of({"file": b"that"})))]))
    with pytest.raises(InvalidInput, match="layer 1 of 1, unpacked, is not what its digest says"):
        read(origin(tmp_path))


def test_a_blob_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    blobs = simple_layout(tmp_path / "layout", tar_of({"file": b"1"}))
    for path in (blobs.folder / "blobs" / "sha256").iterdir():
        aside = path.rename(tmp_path / "aside")
        path.symlink_to(aside)
        with pytest.raises(InvalidInput, match="cannot be read"):
            read(origin(blobs.folder))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(InvalidInput, match="is not a file"):
            read(origin(blobs.folder))
        path.unlink()
        with pytest.raises(NotFound):
            read(origin(blobs.folder))
        aside.rename(path)
    read(origin(blobs.folder))


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../../etc/passwd",
        "../../etc/passwd",
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 63,
        "md5:" + "0" * 32,
        "sha256:" + "0" * 63 + "/",
        "sha512:" + "0" * 64,
        "",
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_a_digest_that_is_none_is_refused_before_anything_is_opened(tmp_path: Path, digest: str) -> None:
    blobs = BlobFolder(tmp_path)
    blobs.publish({"mediaType": OCI_MANIFEST, "digest": digest, "size": 10})
    with pytest.raises(InvalidInput, match="digest"):
        read(origin(tmp_path))


def test_indexes_that_lead_ever_deeper_are_refused(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    image = blobs.add_image([])
    for _level in range(3):
        image = blobs.add_index(image)
    blobs.publish(image)
    read(origin(tmp_path))
    blobs.publish(blobs.add_index(image))
    with pytest.raises(InvalidInput, match="deep"):
        read(origin(tmp_path))


def test_an_index_that_names_itself_ends(tmp_path: Path) -> None:
    # No real index can hold its own digest; a folder may pretend, and the hash gives it away.
    blobs = BlobFolder(tmp_path)
    loop = digest_of(b"loop")
    document = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": loop, "size": 10}]}
    blobs.path(loop).write_text(json.dumps(document))
    blobs.publish({"mediaType": OCI_INDEX, "digest": loop, "size": 10})
    with pytest.raises(InvalidInput, match="not what its digest says"):
        read(origin(tmp_path))


def test_a_layer_that_unpacks_to_far_too_much_is_refused(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    archive = tar_of({"zeros": bytes(20 << 20)})
    blobs.publish(blobs.add_image([(blobs.add(gzip.compress(archive), GZIP_LAYER), digest_of(archive))]))
    read(origin(tmp_path))
    for limits in (
        ArchiveLimits(unpacked_bytes=10 << 20),
        ArchiveLimits(ratio=100, ratio_grace_bytes=1 << 20),
    ):
        with pytest.raises(InvalidInput, match="made to fill this machine up"):
            read(origin(tmp_path, limits=limits))


def test_as_many_digests_as_layers_are_wanted(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    layer, diff_id = blobs.add_layer(tar_of({"file": b"1"}))
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_id] * 2}}
    manifest = {"schemaVersion": 2, "config": blobs.add_json(config, CONFIG), "layers": [layer]}
    blobs.publish(blobs.add_json(manifest, OCI_MANIFEST))
    with pytest.raises(InvalidInput, match="1 layers, and digests of 2"):
        read(origin(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"imageLayoutVersion": "2.0"}', "\0", '{"a":' * 10_000])
def test_a_folder_that_is_no_layout_is_refused(tmp_path: Path, content: str) -> None:
    simple_layout(tmp_path)
    (tmp_path / "oci-layout").write_text(content)
    with pytest.raises(InvalidInput, match="not an OCI layout"):
        read(origin(tmp_path))
    (tmp_path / "oci-layout").unlink()
    with pytest.raises(NotFound):
        read(origin(tmp_path))


def test_documents_of_endless_length_are_refused(tmp_path: Path) -> None:
    simple_layout(tmp_path)
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="longer than"):
        read(origin(tmp_path))


def test_no_change_of_a_bit_makes_anything_else_than_the_image_or_a_clear_error(tmp_path: Path) -> None:
    simple_layout(tmp_path, tar_of({"a/file": b"content", "b": None}), tar_of({"a/.wh.file": b""}))
    good, _ = read(origin(tmp_path))
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for place in range(0, len(content), 7):
            content[place] ^= 1 << place % 8
            path.write_bytes(content)
            try:
                tree, _ = read(origin(tmp_path))
                assert describe(tree) == describe(good)
            except GlowplugError:
                pass
            content[place] ^= 1 << place % 8
        path.write_bytes(content)
