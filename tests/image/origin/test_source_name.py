from __future__ import annotations

from pathlib import Path

import pytest
from tests.image.origin.oci_images import simple_layout

from glowplug.image.origin.reference import Reference
from glowplug.image.origin.source_name import (
    DockerfileSource,
    FolderSource,
    LayoutSource,
    RegistrySource,
    TarSource,
    parse_source,
)
from glowplug.types.errors import InvalidInput, NotFound


def test_what_lies_at_a_path_decides(tmp_path: Path) -> None:
    (tmp_path / "root.tar.zst").write_bytes(b"")
    assert parse_source(str(tmp_path)) == FolderSource(tmp_path)
    assert parse_source(f"{tmp_path}/root.tar.zst") == TarSource(tmp_path / "root.tar.zst")


def test_a_prefix_decides(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(b"")
    assert parse_source(f"dir:{tmp_path}") == FolderSource(tmp_path)
    assert parse_source(f"tar:{archive}") == TarSource(archive)
    assert parse_source("docker://a/b:1") == RegistrySource(Reference.parse("a/b:1"))
    assert parse_source(f"oci:{tmp_path}") == LayoutSource(tmp_path, None)
    assert parse_source(f"oci:{tmp_path}:v1.2") == LayoutSource(tmp_path, "v1.2")


def test_a_folder_with_a_colon_in_its_name_is_that_folder(tmp_path: Path) -> None:
    folder = tmp_path / "app:1"
    folder.mkdir()
    assert parse_source(f"oci:{folder}") == LayoutSource(folder, None)
    assert parse_source(f"oci:{folder}:2") == LayoutSource(folder, "2")


@pytest.mark.parametrize("name", ["Dockerfile", "Containerfile"])
def test_a_dockerfile_is_named_by_itself_or_by_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(NotFound, match="no Dockerfile"):
        parse_source(f"dockerfile:{tmp_path}")
    path.write_text("FROM scratch")
    assert parse_source(f"dockerfile:{tmp_path}") == DockerfileSource(path, tmp_path)
    assert parse_source(f"dockerfile:{path}") == DockerfileSource(path, tmp_path)


def test_a_layout_without_its_prefix_is_asked_about(tmp_path: Path) -> None:
    simple_layout(tmp_path)
    with pytest.raises(InvalidInput, match=r"an OCI layout.*Write oci:"):
        parse_source(str(tmp_path))
    assert parse_source(f"dir:{tmp_path}") == FolderSource(tmp_path)


def test_a_name_that_may_be_meant_for_a_registry_gets_a_hint() -> None:
    with pytest.raises(NotFound, match="docker://vllm/vllm-openai:v1"):
        parse_source("vllm/vllm-openai:v1")
    with pytest.raises(NotFound) as caught:
        parse_source("/no/such/folder")
    assert "docker:///" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "\0", "docker://", "docker://A B", "oci:/no/such:tag", "tar:/", "dir:/etc/passwd"]
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises((InvalidInput, NotFound)):
        parse_source(text)
