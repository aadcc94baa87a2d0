"""Layers that lie elsewhere: fetched from there, over HTTP only, without anything of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.image.origin.hostile_kit import (
    LOGIN,
    TWICE,
    origin,
)
from tests.image.origin.oci_images import (
    FOREIGN_LAYER,
    BlobFolder,
    tar_of,
)
from tests.image.origin.origin_kit import paths, read
from tests.image.origin.registry_server import Request, scripted, serve_layout

from glowplug.image.origin.oci_layout import LayoutOrigin
from glowplug.image.origin.oci_platform import Platform
from glowplug.types.errors import (
    InvalidInput,
    NotFound,
    Unavailable,
)


def foreign_image(folder: Path, urls: list[str], archive: bytes) -> tuple[BlobFolder, bytes]:
    """A layout that lacks its only layer, which is said to lie at ``urls``; and that layer."""
    blobs = BlobFolder(folder)
    layer, diff_id = blobs.add_layer(archive, urls=urls)
    blobs.publish(blobs.add_image([({**layer, "mediaType": FOREIGN_LAYER}, diff_id)]))
    path = blobs.path(layer["digest"])
    data = path.read_bytes()
    path.unlink()
    return blobs, data


def test_a_foreign_layer_is_fetched_from_where_it_lies(tmp_path: Path) -> None:
    served: list[bytes] = []
    with scripted(lambda request: request.answer(200, served[0])) as elsewhere:
        urls = ["http://127.0.0.1:1/closed", f"http://{elsewhere.address}/layer"]
        blobs, data = foreign_image(tmp_path / "blobs", urls, tar_of({"foreign": b"1"}))
        served.append(data)
        with scripted(lambda request: serve_layout(blobs, request)) as server:
            tree, _ = read(origin(server, tmp_path, credentials=LOGIN))
        assert paths(tree) == [b"/foreign"]
        layout = LayoutOrigin(
            blobs.folder, scratch=tmp_path, environ={}, patience=TWICE, platform=Platform("linux", "amd64")
        )
        assert paths(read(layout)[0]) == [b"/foreign"]
        assert all("Authorization" not in headers for _, headers in elsewhere.seen)


@pytest.mark.parametrize("answer", ["wrong", "missing"])
def test_a_foreign_layer_that_is_not_there_or_another_is_a_clear_error(tmp_path: Path, answer: str) -> None:
    def respond(request: Request) -> None:
        if answer == "wrong":
            request.answer(200, bytes(len(data)))
        else:
            request.answer(404)

    with scripted(respond) as elsewhere:
        blobs, data = foreign_image(
            tmp_path / "blobs", [f"http://{elsewhere.address}/layer"], tar_of({"foreign": b"1"})
        )
        with scripted(lambda request: serve_layout(blobs, request)) as server:
            with pytest.raises(Unavailable, match="a foreign layer") as caught:
                read(origin(server, tmp_path))
            assert elsewhere.address in caught.value.details["tried"][0]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "s3://bucket/x", "http://a:b@c/"])
def test_a_foreign_layer_is_fetched_over_http_only(tmp_path: Path, url: str) -> None:
    blobs, _ = foreign_image(tmp_path / "blobs", [url], tar_of({"foreign": b"1"}))
    with (
        scripted(lambda request: serve_layout(blobs, request)) as server,
        pytest.raises(InvalidInput, match="no address to fetch from"),
    ):
        read(origin(server, tmp_path))


def test_addresses_of_layers_that_are_not_foreign_are_not_looked_at(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    with scripted(lambda request: request.answer(200, b"")) as elsewhere:
        layer, diff_id = blobs.add_layer(tar_of({"x": b"1"}), urls=[f"http://{elsewhere.address}/layer"])
        blobs.publish(blobs.add_image([(layer, diff_id)]))
        blobs.path(layer["digest"]).unlink()
        with scripted(lambda request: serve_layout(blobs, request)) as server, pytest.raises(NotFound):
            read(origin(server, tmp_path))
        assert elsewhere.seen == []
