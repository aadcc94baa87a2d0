"""Against Debian's docker-registry, with images that umoci made and skopeo pushed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import needs
from tests.image.index.trees import describe
from tests.image.origin.oci_images import BlobFolder, make_umoci_layout, run, tar_of
from tests.image.origin.origin_kit import a_job, paths, read
from tests.image.origin.registry_server import PASSWORD, USER, DockerRegistry, TokenServer

from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.oci_layout import LayoutOrigin
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.types.errors import NotFound, Unauthorized

LOGIN = Credentials(USER, PASSWORD)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs.root("to unpack")
    needs.programs("umoci", "skopeo", "docker-registry")
    work = tmp_path_factory.mktemp("layout")
    return make_umoci_layout(work, work)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        push(registry, layout, "team/app:1")
        yield registry


def push(registry: DockerRegistry, layout: Path, name: str, *options: str, tag: str = "app") -> None:
    target = f"docker://{registry.address}/{name}"
    run("skopeo", "copy", "--dest-tls-verify=false", *options, f"oci:{layout}:{tag}", target)


def origin(registry: DockerRegistry, name: str, scratch: Path, **options: Any) -> RegistryOrigin:
    options.setdefault("environ", {"HOME": str(scratch)})
    options.setdefault("platform", Platform("linux", "amd64"))
    return RegistryOrigin(Reference.parse(f"{registry.address}/{name}"), scratch=scratch, **options)


def from_layout(layout: Path, tag: str = "app") -> LayoutOrigin:
    return LayoutOrigin(layout, tag, scratch=layout, environ={}, platform=Platform("linux", "amd64"))


def test_an_image_pulled_is_the_image_pushed(registry: DockerRegistry, layout: Path, tmp_path: Path) -> None:
    source = origin(registry, "team/app:1", tmp_path)
    assert source.describe() == f"{registry.address}/team/app:1"
    assert describe(read(source)[0]) == describe(read(from_layout(layout))[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--format=v2s2"],
        ["--format=oci", "--dest-compress-format=zstd", "--dest-compress"],
        ["--dest-decompress"],
    ],
    ids=["docker-schema-2", "zstd", "uncompressed"],
)
def test_it_is_the_same_in_every_form_that_skopeo_pushes(
    registry: DockerRegistry, layout: Path, tmp_path: Path, options: list[str]
) -> None:
    push(registry, layout, "team/forms:1", *options)
    tree, _ = read(origin(registry, "team/forms:1", tmp_path))
    assert describe(tree) == describe(read(from_layout(layout))[0])


def test_an_index_of_many_platforms_is_pulled_for_one(registry: DockerRegistry, tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "layout")
    images = []
    for architecture in ("arm64", "amd64"):
        platform = {"os": "linux", "architecture": architecture}
        layer = blobs.add_layer(tar_of({architecture: b""}))
        images.append({**blobs.add_image([layer], platform=platform), "platform": platform})
    blobs.publish(blobs.add_index(*images))
    push(registry, blobs.folder, "team/many:1", "--all")
    assert paths(read(origin(registry, "team/many:1", tmp_path))[0]) == [b"/amd64"]
    arm = Platform("linux", "arm64", "v8")
    assert paths(read(origin(registry, "team/many:1", tmp_path, platform=arm))[0]) == [b"/arm64"]


def test_a_pinned_reference_names_the_same_image_after_its_tag_moved_on(
    registry: DockerRegistry, tmp_path: Path
) -> None:
    blobs = BlobFolder(tmp_path / "layout")
    for name in ("old", "new"):
        blobs.publish(blobs.add_image([blobs.add_layer(tar_of({name: b""}))]), tag=name)
        push(registry, blobs.folder, "team/moving:1", tag=name)
        if name == "old":
            pinned = origin(registry, "team/moving:1", tmp_path).pin(a_job())
    assert str(pinned).startswith(f"{registry.address}/team/moving:1@sha256:")
    assert paths(read(origin(registry, "team/moving:1", tmp_path))[0]) == [b"/new"]
    name = str(pinned).partition("/")[2]
    assert paths(read(origin(registry, name, tmp_path))[0]) == [b"/old"]


def test_what_is_not_there_is_not_found(registry: DockerRegistry, tmp_path: Path) -> None:
    for name in ("team/app:2", "team/other:1", f"team/app@sha256:{'0' * 64}"):
        with pytest.raises(NotFound, match="does not have"):
            read(origin(registry, name, tmp_path))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[DockerRegistry]:
    """A registry that wants a password with every request."""
    with DockerRegistry.with_password(tmp_path_factory.mktemp("guarded")) as registry:
        push(registry, layout, "team/app:1", f"--dest-creds={USER}:{PASSWORD}")
        yield registry


@pytest.mark.parametrize("kind", ["auth", "helper", "store"])
def test_the_password_of_docker_login_opens_the_registry(
    guarded: DockerRegistry, layout: Path, tmp_path: Path, kind: str
) -> None:
    environ = docker_login(tmp_path, guarded.address, kind)
    tree, _ = read(origin(guarded, "team/app:1", tmp_path / "scratch", environ=environ))
    assert describe(tree) == describe(read(from_layout(layout))[0])


def test_without_the_right_password_it_stays_closed(guarded: DockerRegistry, tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="wants a login"):
        read(origin(guarded, "team/app:1", tmp_path))
    with pytest.raises(Unauthorized, match="does not let 'keeper'"):
        read(origin(guarded, "team/app:1", tmp_path, credentials=Credentials(USER, "wrong")))


def test_tokens_are_fetched_for_the_repository_and_no_more(layout: Path, tmp_path: Path) -> None:
    with (
        TokenServer(tmp_path / "tokens") as tokens,
        DockerRegistry(tmp_path / "registry", tokens.auth()) as registry,
    ):
        push(registry, layout, "team/app:1", f"--dest-creds={USER}:{PASSWORD}")
        tokens.answers_to.clear()
        tree, _ = read(origin(registry, "team/app:1", tmp_path / "scratch", credentials=LOGIN))
        assert describe(tree) == describe(read(from_layout(layout))[0])
        # Four threads and one token.
        assert [scope for scope, _ in tokens.answers_to] == ["repository:team/app:pull"]
        for credentials in (None, Credentials(USER, "wrong")):
            with pytest.raises(Unauthorized):
                read(origin(registry, "team/app:1", tmp_path / "scratch", credentials=credentials))


def docker_login(home: Path, registry: str, kind: str) -> dict[str, str]:
    """The environment of somebody who ran ``docker login``."""
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    config: dict[str, object] = {
        "auth": {"auths": {f"https://{registry}/v1/": {"auth": pair}}},
        "helper": {"credHelpers": {registry: "of-tests"}, "credsStore": "not-asked"},
        "store": {"credsStore": "of-tests"},
    }[kind]
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(json.dumps(config))
    programs = home / "programs"
    programs.mkdir()
    helper = programs / "docker-credential-of-tests"
    answer = json.dumps({"ServerURL": registry, "Username": USER, "Secret": PASSWORD})
    helper.write_text(
        f"#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {registry}' ] || exit 1\necho '{answer}'\n"
    )
    helper.chmod(0o755)
    return {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
