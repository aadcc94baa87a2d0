"""Real builds by buildah, from nothing and from a real registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import needs
from tests.image.origin.oci_images import BlobFolder, make_shell_root, run, tar_of
from tests.image.origin.origin_kit import OpenStore, a_job, at, paths, read
from tests.image.origin.registry_server import DockerRegistry

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.origin.dockerfile import DockerfileOrigin
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.errors import InvalidInput, NotFound

PROXY = "http://proxy.invalid:3128"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Path]:
    needs.root("to build")
    needs.programs("buildah", "mmdebstrap", "docker-registry", "skopeo")
    context = tmp_path / "context"
    context.mkdir()
    yield context
    # Layers of an overlay hold files that pytest may not remove by itself.
    shutil.rmtree(tmp_path / "storage", ignore_errors=True)


def origin(context: Path, **options: object) -> DockerfileOrigin:
    options.setdefault("environ", {"HOME": str(context)})
    return DockerfileOrigin(
        context / "Dockerfile",
        context,
        storage=context.parent / "storage",
        **options,  # type: ignore[arg-type]
    )


def containers_of(storage: Path) -> list[str]:
    """Mounts below the storage, and what is left in its scratch folder."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left = [line for line in mounts if str(storage) in line]
    return left + [str(path) for path in storage.glob("scratch/*")]


def test_what_a_dockerfile_builds_is_the_image(context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM scratch\nARG WHAT=nothing\nCOPY --chown=7:8 file /srv/\nENV MODE=$WHAT\nWORKDIR /srv\n"
        'ENTRYPOINT ["/srv/file"]\nCMD ["--now"]\nUSER 7\nLABEL team=images\n'
    )
    (context / "file").write_bytes(b"from the context")
    (context / "file").chmod(0o750)
    with ChunkSink(store := OpenStore()) as sink:
        tree, config = origin(context, build_args={"WHAT": "a b"}).read(sink, a_job())
    inode = at(tree, b"/srv/file")
    assert (inode.mode & 0o7777, inode.uid, inode.gid) == (0o750, 7, 8)
    assert store.content(inode) == b"from the context"
    assert config == ImageConfig(
        env={"PATH": config.env["PATH"], "MODE": "a b"},
        entrypoint=["/srv/file"],
        cmd=["--now"],
        workdir="/srv",
        user="7",
        labels={
            "team": "images",
            **{name: text for name, text in config.labels.items() if "buildah" in name},
        },
    )
    assert containers_of(context.parent / "storage") == []


def test_steps_run_on_an_image_from_a_registry_and_see_proxies_that_are_not_kept(context: Path) -> None:
    with DockerRegistry(context.parent / "registry") as registry:
        push_shell(registry, context.parent / "base")
        (context / "Dockerfile").write_text(
            f"FROM {registry.address}/base:1\nRUN echo $http_proxy > /seen && rm /gone && ln /kept /again\n"
        )
        source = origin(
            context,
            plain_http_registries=[registry.address],
            environ={
                "HOME": str(context),
                "http_proxy": "http://proxy.invalid:3128",
                "no_proxy": "127.0.0.1",
            },
        )
        with ChunkSink(store := OpenStore()) as sink:
            tree, config = source.read(sink, a_job())
    assert store.content(at(tree, b"/seen")) == f"{PROXY}\n".encode()
    assert at(tree, b"/again") is at(tree, b"/kept")
    assert b"/gone" not in paths(tree)
    assert "proxy" not in json.dumps(config.model_dump(mode="json"))


def test_a_step_that_fails_is_named_and_nothing_is_left(context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY missing /\n")
    with pytest.raises(InvalidInput, match=r"step 2/2 \(COPY missing /\) failed"):
        read(origin(context))
    assert containers_of(context.parent / "storage") == []


def test_a_dockerfile_without_sense_is_refused(context: Path) -> None:
    (context / "Dockerfile").write_text("FORM scratch\n")
    with pytest.raises(InvalidInput):
        read(origin(context))
    (context / "Dockerfile").unlink()
    with pytest.raises(NotFound):
        read(origin(context))


@pytest.mark.parametrize("name", ["", "A-B", "1A", "A=B", "--tag", "A\n"])
def test_a_build_argument_is_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="build argument"):
        DockerfileOrigin(tmp_path / "Dockerfile", tmp_path, storage=tmp_path, build_args={name: "x"})


def push_shell(registry: DockerRegistry, folder: Path) -> None:
    """An image that is little more than a shell."""
    root = folder / "root"
    make_shell_root(root, "/bin/sh", "/bin/rm", "/bin/ln")
    (root / "kept").write_text("kept")
    (root / "gone").write_text("gone")
    archive = folder / "root.tar"
    run("tar", "-C", root, "-cf", archive, ".")
    blobs = BlobFolder(folder / "layout")
    blobs.publish(
        blobs.add_image([blobs.add_layer(archive.read_bytes()), blobs.add_layer(tar_of({"x": b""}))])
    )
    target_name = f"docker://{registry.address}/base:1"
    run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{blobs.folder}:app", target_name)
