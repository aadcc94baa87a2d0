"""Registries whose layers break, stall, lie or never end: nothing wrong comes of it, and soon."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.image.origin.hostile_kit import (
    CONTENT,
    HASTY,
    OFTEN,
    is_for_layer,
    layer_of,
    long_image,
    origin,
    read_file,
)
from tests.image.origin.oci_images import (
    BlobFolder,
    simple_layout,
    tar_of,
)
from tests.image.origin.origin_kit import a_job, paths, read
from tests.image.origin.registry_server import Request, scripted, serve_layout

from glowplug.types.errors import (
    DeadlineExceeded,
    InvalidInput,
    ResourceExhausted,
    Unavailable,
)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return long_image(tmp_path / "blobs")


def test_a_download_that_breaks_again_and_again_goes_on_where_it_broke(
    blobs: BlobFolder, tmp_path: Path
) -> None:
    def respond(request: Request) -> None:
        if not is_for_layer(request, blobs):
            serve_layout(blobs, request)
            return
        data = blobs.path(layer_of(blobs)).read_bytes()
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        piece = data[start : start + 500_000]
        if start:
            shown = f"bytes {start}-{len(data) - 1}/{len(data)}"
            request.head(206, Content_Range=shown, Content_Length=len(data) - start)
        else:
            request.head(200, Content_Length=len(data))
        request.wfile.write(piece)
        if start + len(piece) < len(data):
            request.hang_up()

    with scripted(respond) as server:
        assert read_file(origin(server, tmp_path, patience=replace(OFTEN, attempts=20))) == CONTENT
        ranges = [headers.get("Range") for path, headers in server.seen if path.endswith(layer_of(blobs))]
    assert ranges[0] is None
    assert len(ranges) == 7
    assert all(ranges[1:])


def test_a_server_that_ignores_ranges_is_read_from_the_start(blobs: BlobFolder, tmp_path: Path) -> None:
    asked: list[str] = []

    def respond(request: Request) -> None:
        if not is_for_layer(request, blobs):
            serve_layout(blobs, request)
            return
        data = blobs.path(layer_of(blobs)).read_bytes()
        request.head(200, Content_Length=len(data))
        asked.append(request.headers.get("Range", ""))
        if len(asked) == 1:
            request.wfile.write(data[:1_000_000])
            request.hang_up()
        else:
            request.wfile.write(data)

    with scripted(respond) as server:
        assert read_file(origin(server, tmp_path)) == CONTENT
    assert asked[0] == ""
    assert asked[1].startswith("bytes=")


@pytest.mark.parametrize(
    "content_range", ["bytes 5-9/10", "bytes 1-", "", "items 0-1/2", "bytes 500000-3/7", "bytes 0-0/*"]
)
def test_another_range_than_the_one_asked_for_is_not_believed(
    blobs: BlobFolder, tmp_path: Path, content_range: str
) -> None:
    asked: list[str] = []

    def respond(request: Request) -> None:
        if not is_for_layer(request, blobs):
            serve_layout(blobs, request)
            return
        data = blobs.path(layer_of(blobs)).read_bytes()
        asked.append(request.headers.get("Range", ""))
        if len(asked) == 1:
            request.head(200, Content_Length=len(data))
            request.wfile.write(data[:500_000])
            request.hang_up()
        elif len(asked) == 2:
            request.answer(206, data[7:], Content_Range=content_range)
        else:
            request.answer(200, data)

    with scripted(respond) as server:
        assert read_file(origin(server, tmp_path, patience=OFTEN)) == CONTENT


def test_wrong_bytes_are_fetched_once_more_and_then_refused(blobs: BlobFolder, tmp_path: Path) -> None:
    damaged: list[bool] = []

    def respond(request: Request, times: int) -> None:
        if not is_for_layer(request, blobs) or len(damaged) >= times:
            serve_layout(blobs, request)
            return
        damaged.append(True)
        data = bytearray(blobs.path(layer_of(blobs)).read_bytes())
        data[100_000] ^= 1
        request.answer(200, bytes(data))

    with scripted(lambda request: respond(request, 1)) as server:
        assert read_file(origin(server, tmp_path)) == CONTENT
    with (
        scripted(lambda request: respond(request, 100)) as server,
        pytest.raises(InvalidInput, match="not what its digest says"),
    ):
        read(origin(server, tmp_path))
    assert len(damaged) == 1 + 2


def test_nothing_comes_out_of_an_image_whose_second_layer_is_wrong(tmp_path: Path) -> None:
    blobs = simple_layout(tmp_path / "blobs", tar_of({"first": b"1"}), tar_of({"second": b"2"}))

    def respond(request: Request) -> None:
        path = blobs.path(request.path.rpartition("/")[2])
        if "/blobs/" in request.path and path.is_file() and path.read_bytes()[:2] == b"\x1f\x8b":
            request.answer(200, bytes(path.stat().st_size))
        else:
            serve_layout(blobs, request)

    with scripted(respond) as server, pytest.raises(InvalidInput, match="not what its digest says"):
        read(origin(server, tmp_path))
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize("how", ["silent", "headers", "body", "hangs_up", "garbage"])
def test_a_server_that_stalls_or_trickles_is_given_up(
    blobs: BlobFolder, tmp_path: Path, where: str, how: str
) -> None:
    def respond(request: Request) -> None:
        if where not in request.path:
            serve_layout(blobs, request)
        elif how == "silent":
            request.stall()
        elif how == "headers":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            request.trickle()
        elif how == "body":
            digest = request.path.rpartition("/")[2]
            size_bytes = blobs.path(digest).stat().st_size if digest.startswith("sha256:") else 1000
            request.head(200, Content_Length=size_bytes)
            request.trickle()
        elif how == "hangs_up":
            request.close_connection = True
        else:
            request.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            request.close_connection = True

    with scripted(respond) as server, pytest.raises(Unavailable):
        read(origin(server, tmp_path, pace=HASTY))


def test_a_layer_that_trickles_is_given_up_as_too_slow(blobs: BlobFolder, tmp_path: Path) -> None:
    def respond(request: Request) -> None:
        if not is_for_layer(request, blobs):
            serve_layout(blobs, request)
            return
        request.head(200, Content_Length=blobs.path(layer_of(blobs)).stat().st_size)
        request.trickle()

    with scripted(respond) as server, pytest.raises(Unavailable, match="too slow"):
        read(origin(server, tmp_path, pace=HASTY))


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_job_that_is_over_ends_a_download_that_stalls(
    blobs: BlobFolder, tmp_path: Path, is_cancelled: bool
) -> None:
    job = a_job()
    stalled = threading.Event()

    def respond(request: Request) -> None:
        if not is_for_layer(request, blobs):
            serve_layout(blobs, request)
            return
        if is_cancelled:
            job.cancelled.set()
        stalled.set()
        request.stall()

    if not is_cancelled:
        job = replace(job, deadline_s=job.clock.monotonic() + 3)
    expected = Unavailable if is_cancelled else DeadlineExceeded
    with scripted(respond) as server, pytest.raises(expected):
        read(origin(server, tmp_path), job=job)
    assert stalled.is_set()
    assert [thread for thread in threading.enumerate() if thread.name.startswith(("layers", "http"))] == []


def test_a_blob_without_end_is_refused(blobs: BlobFolder, tmp_path: Path) -> None:
    def respond(request: Request) -> None:
        if not is_for_layer(request, blobs):
            serve_layout(blobs, request)
            return
        request.head(200, Transfer_Encoding="chunked")
        while not request.server.closing.is_set():
            request.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    with scripted(respond) as server, pytest.raises(InvalidInput, match="has more bytes"):
        read(origin(server, tmp_path))


def test_a_layer_larger_than_the_disk_is_not_begun(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    layer, diff_id = blobs.add_layer(tar_of({"file": b"1"}))
    blobs.publish(blobs.add_image([({**layer, "size": 1 << 41}, diff_id)]))
    with (
        scripted(lambda request: serve_layout(blobs, request)) as server,
        pytest.raises(ResourceExhausted, match="does not fit"),
    ):
        read(origin(server, tmp_path))
    assert not any(layer["digest"] in path for path in server.paths())


def test_many_layers_are_fetched_side_by_side_and_applied_in_order(tmp_path: Path) -> None:
    names = [f"layer{number}" for number in range(9)]
    blobs = simple_layout(
        tmp_path / "blobs", *(tar_of({"last": name.encode(), name: b"1"}) for name in names)
    )
    together = threading.Barrier(4)
    opened: list[str] = []

    def respond(request: Request) -> None:
        path = blobs.path(request.path.rpartition("/")[2])
        if "/blobs/" in request.path and path.read_bytes()[:2] == b"\x1f\x8b":
            opened.append(request.path)
            if len(opened) <= 4:
                together.wait(60)  # answers only once four are asked for
        serve_layout(blobs, request)

    with scripted(respond) as server:
        tree, store = read(origin(server, tmp_path))
    last = tree.lookup(b"/last")
    assert last is not None
    assert store.content(last) == b"layer8"
    assert paths(tree) == [b"/last", *(f"/{name}".encode() for name in names)]
