"""Registries that break, stall, lie, and ask for what is not theirs: nothing wrong comes of it, and soon."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.image.origin.oci_images import (
    FOREIGN_LAYER,
    BlobFolder,
    digest_of,
    simple_layout,
    tar_of,
)
from tests.image.origin.origin_kit import OpenStore, a_job, paths, read
from tests.image.origin.registry_server import Request, ScriptedServer, scripted, serve_layout

from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.http_session import Pace
from glowplug.image.origin.oci_layout import LayoutOrigin
from glowplug.image.origin.oci_manifest import DOCKER_INDEX, MAX_DOCUMENT_BYTES, OCI_MANIFEST
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import (
    DeadlineExceeded,
    GlowplugError,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unauthorized,
    Unavailable,
)

HASTY = Pace(connect_s=5, answer_s=0.6, minimum_bytes_per_s=100_000, window_s=0.3)
TWICE = Patience(attempts=2, first_pause_s=0, longest_pause_s=0)
OFTEN = Patience(attempts=6, first_pause_s=0, longest_pause_s=0)
LOGIN = Credentials("keeper", "secret")
CONTENT = bytes(range(256)) * 12_000  # three chunks


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    """An image of one layer with a file of 3 MB; the layer is stored uncompressed, so that it is long."""
    blobs = BlobFolder(tmp_path / "blobs")
    archive = tar_of({"file": CONTENT})
    layer = blobs.add(archive, "application/vnd.oci.image.layer.v1.tar")
    blobs.publish(blobs.add_image([(layer, digest_of(archive))]))
    return blobs


def origin(server: ScriptedServer, tmp_path: Path, **options: Any) -> RegistryOrigin:
    options = {
        "environ": {"HOME": str(tmp_path)},
        "platform": Platform("linux", "amd64"),
        "patience": TWICE,
        **options,
    }
    reference = Reference.parse(f"{server.address}/team/app:app")
    return RegistryOrigin(reference, scratch=tmp_path / "scratch", **options)


def layer_of(blobs: BlobFolder) -> str:
    """The digest of the long layer."""
    longest = max((blobs.folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    return f"sha256:{longest.name}"


def is_for_layer(request: Request, blobs: BlobFolder) -> bool:
    return request.path.endswith(f"/blobs/{layer_of(blobs)}")


def read_file(source: RegistryOrigin) -> bytes:
    tree, store = read(source)
    inode = tree.lookup(b"/file")
    assert inode is not None
    return store.content(inode)


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


def test_a_layer_that_trickles_is_given_up_and_one_that_only_started_slowly_is_not(
    blobs: BlobFolder, tmp_path: Path
) -> None:
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
        job = replace(job, deadline_s=job.clock.monotonic() + 1)
    expected = Unavailable if is_cancelled else DeadlineExceeded
    with scripted(respond) as server, pytest.raises(expected):
        read(origin(server, tmp_path), job=job)
    assert stalled.is_set()
    assert [thread for thread in threading.enumerate() if thread.name.startswith(("layers", "http"))] == []


def test_an_overloaded_registry_is_asked_again(blobs: BlobFolder, tmp_path: Path) -> None:
    refusals = {429: 2, 503: 1, 500: 1}

    def respond(request: Request) -> None:
        for status, left in refusals.items():
            if left:
                refusals[status] -= 1
                request.answer(status, b"<html>busy</html>" * 2000, Retry_After=0)
                return
        serve_layout(blobs, request)

    with scripted(respond) as server:
        assert read_file(origin(server, tmp_path, patience=OFTEN)) == CONTENT


def test_a_registry_that_stays_overloaded_is_given_up(blobs: BlobFolder, tmp_path: Path) -> None:
    with (
        scripted(lambda request: request.answer(503)) as server,
        pytest.raises(Unavailable, match="answers with 503"),
    ):
        read(origin(server, tmp_path, patience=OFTEN))
    assert len(server.seen) == OFTEN.attempts


def test_blobs_may_lie_elsewhere_and_the_token_stays_with_the_registry(
    blobs: BlobFolder, tmp_path: Path
) -> None:
    def elsewhere(request: Request) -> None:
        serve_layout(blobs, request)

    with scripted(elsewhere) as storage:

        def respond(request: Request) -> None:
            if request.path.startswith("/token"):
                request.answer(200, b'{"token": "the-token"}')
            elif request.headers.get("Authorization") != "Bearer the-token":
                realm = f'Bearer realm="http://{server.address}/token",service="s",scope="repository:x:*"'
                request.answer(401, WWW_Authenticate=realm)
            elif "/blobs/" in request.path:
                request.answer(307, Location=f"http://{storage.address}{request.path}")
            else:
                serve_layout(blobs, request)

        with scripted(respond) as server:
            assert read_file(origin(server, tmp_path, credentials=LOGIN)) == CONTENT
        assert len(storage.seen) == 2
        for _, headers in storage.seen:
            assert "Authorization" not in headers
            assert "Cookie" not in headers
        tokens = [(path, headers) for path, headers in server.seen if path.startswith("/token")]
        assert [path for path, _ in tokens] == ["/token?service=s&scope=repository%3Ateam%2Fapp%3Apull"]
        assert tokens[0][1]["Authorization"].startswith("Basic ")


def test_a_manifest_may_not_lie_elsewhere(blobs: BlobFolder, tmp_path: Path) -> None:
    with scripted(lambda request: serve_layout(blobs, request)) as storage:

        def respond(request: Request) -> None:
            request.answer(302, Location=f"http://{storage.address}{request.path}")

        with scripted(respond) as server, pytest.raises(InvalidInput, match="elsewhere"):
            read(origin(server, tmp_path))
        assert storage.seen == []


@pytest.mark.parametrize(
    "location",
    [
        "/v2/team/app/blobs/again",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user:password@127.0.0.1:1/x",
        "http://",
        "",
        "http://[::1",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "//",
        "http://127.0.0.1\\@example.invalid/",
        "http://" + "a" * 20_000,
    ],
)
def test_redirects_that_lead_nowhere_are_not_followed(
    blobs: BlobFolder, tmp_path: Path, location: str
) -> None:
    def respond(request: Request) -> None:
        if "/blobs/" in request.path:
            request.answer(302, Location=location)
        else:
            serve_layout(blobs, request)

    with scripted(respond) as server, pytest.raises(InvalidInput):
        read(origin(server, tmp_path))
    assert len(server.seen) <= 1 + 6


def test_a_login_server_that_sends_us_on_gets_no_second_password(blobs: BlobFolder, tmp_path: Path) -> None:
    with scripted(lambda request: request.answer(200, b'{"token": "x"}')) as thief:

        def respond(request: Request) -> None:
            if request.path.startswith("/token"):
                request.answer(307, Location=f"http://{thief.address}/token")
            else:
                request.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.address}/token"')

        with scripted(respond) as server, pytest.raises(Unauthorized):
            read(origin(server, tmp_path, credentials=LOGIN))
        assert thief.seen == []


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Bearer",
        'Bearer realm=""',
        'Bearer realm="file:///etc/passwd"',
        'Bearer realm="http://user:pw@127.0.0.1/"',
        'Bearer realm="http://[::1"',
        'Digest realm="x", nonce="y"',
        'Bearer realm="' + "a" * 10_000,
        "=,=,=;;;" * 500,
    ],
)
def test_challenges_without_sense_end_in_a_clear_error(tmp_path: Path, challenge: str) -> None:
    with (
        scripted(lambda request: request.answer(401, WWW_Authenticate=challenge)) as server,
        pytest.raises((Unauthorized, InvalidInput)),
    ):
        read(origin(server, tmp_path, credentials=LOGIN))


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b'{"token": 3}', b'{"token": "a\\r\\nX-Evil: 1"}', b'{"token":"' + b"x" * 300_000]
)
def test_a_token_that_is_none_is_not_sent(tmp_path: Path, answer: bytes) -> None:
    def respond(request: Request) -> None:
        if request.path.startswith("/token"):
            request.answer(200, answer)
        else:
            request.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.address}/token"')

    with scripted(respond) as server, pytest.raises(InvalidInput):
        read(origin(server, tmp_path))
    assert all("Authorization" not in headers for _, headers in server.seen)


def test_a_token_that_ran_out_is_renewed_once(blobs: BlobFolder, tmp_path: Path) -> None:
    issued: list[str] = []

    def respond(request: Request) -> None:
        if request.path.startswith("/token"):
            issued.append(f"token-{len(issued)}")
            request.answer(200, json.dumps({"access_token": issued[-1]}).encode())
        elif not issued or request.headers.get("Authorization") != f"Bearer {issued[-1]}":
            request.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.address}/token"')
        elif "/blobs/" in request.path and len(issued) == 1:
            issued.append("ran out")
            request.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.address}/token"')
        else:
            serve_layout(blobs, request)

    with scripted(respond) as server:
        assert read_file(origin(server, tmp_path)) == CONTENT
    assert issued == ["token-0", "ran out", "token-2"]


def test_a_refresh_token_of_docker_login_is_used(blobs: BlobFolder, tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def respond(request: Request) -> None:
        if request.path.startswith("/token"):
            bodies.append(request.body)
            request.answer(200, b'{"access_token": "t"}')
        elif request.headers.get("Authorization") != "Bearer t":
            request.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.address}/token"')
        else:
            serve_layout(blobs, request)

    with scripted(respond) as server:
        login = Credentials("<token>", "", "refresh-me")
        assert read_file(origin(server, tmp_path, credentials=login)) == CONTENT
    assert len(bodies) == 1
    assert b"refresh_token=refresh-me" in bodies[0]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_manifest_without_end_is_refused(tmp_path: Path, is_chunked: bool) -> None:
    def respond(request: Request) -> None:
        if is_chunked:
            request.head(200, Transfer_Encoding="chunked", Content_Type=OCI_MANIFEST)
            for _piece in range(MAX_DOCUMENT_BYTES // 65536 + 10):
                request.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
        else:
            request.answer(200, b" " * (MAX_DOCUMENT_BYTES + 1), Content_Type=OCI_MANIFEST)
        request.hang_up()

    with scripted(respond) as server, pytest.raises(InvalidInput, match="longer than"):
        read(origin(server, tmp_path))


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


def test_a_manifest_by_digest_is_only_that_manifest(blobs: BlobFolder, tmp_path: Path) -> None:
    with scripted(lambda request: request.answer(200, b'{"schemaVersion": 2, "layers": []}')) as server:
        reference = Reference.parse(f"{server.address}/team/app@{digest_of(b'another')}")
        source = RegistryOrigin(reference, scratch=tmp_path, environ={"HOME": str(tmp_path)})
        with pytest.raises(InvalidInput, match="not what its digest says"):
            read(source)


def test_an_index_that_is_served_as_a_manifest_is_refused(blobs: BlobFolder, tmp_path: Path) -> None:
    index = b'{"schemaVersion": 2, "manifests": []}'
    manifest = b'{"schemaVersion": 2, "layers": []}'
    for body, kind in ((index, OCI_MANIFEST), (manifest, DOCKER_INDEX)):

        def respond(request: Request, body: bytes = body, kind: str = kind) -> None:
            request.answer(200, body, Content_Type=f"{kind}; charset=utf-8")

        with scripted(respond) as server, pytest.raises(InvalidInput, match="it came as"):
            read(origin(server, tmp_path))


def test_what_a_registry_says_is_fit_for_a_terminal(blobs: BlobFolder, tmp_path: Path) -> None:
    blobs.path(layer_of(blobs)).unlink()
    with (
        scripted(lambda request: serve_layout(blobs, request)) as server,
        pytest.raises(NotFound) as caught,
    ):
        read(origin(server, tmp_path))
    assert caught.value.details["said"] == "UNKNOWN: no such thing"


def test_a_registry_that_nobody_runs_is_unavailable(tmp_path: Path) -> None:
    with scripted(lambda request: request.answer(200)) as server:
        pass
    with pytest.raises(Unavailable, match="cannot be read"):
        read(origin(server, tmp_path))


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
                together.wait(10)  # answers only once four are asked for
        serve_layout(blobs, request)

    with scripted(respond) as server:
        tree, store = read(origin(server, tmp_path))
    last = tree.lookup(b"/last")
    assert last is not None
    assert store.content(last) == b"layer8"
    assert paths(tree) == [b"/last", *(f"/{name}".encode() for name in names)]


def test_answers_of_noise_never_end_in_anything_but_our_own_errors(tmp_path: Path) -> None:
    answers: list[Callable[[Request], None]] = [
        lambda request: request.answer(200, b"\xff\xfe\x00"),
        lambda request: request.answer(200, b"[" * 100_000),
        lambda request: request.answer(200, b'{"schemaVersion": 1, "fsLayers": []}'),
        lambda request: request.answer(200, b'{"schemaVersion": 2, "layers": 3}'),
        lambda request: request.answer(200, b'{"schemaVersion": 2, "manifests": [{"size": -1}]}'),
        lambda request: request.answer(200, b'{"schemaVersion": 2, "manifests": [{"size": 1e400}]}'),
        lambda request: request.answer(200, b"1" * 10_000),
        lambda request: request.answer(204),
        lambda request: request.answer(206, b"{}"),
        lambda request: request.answer(418),
        lambda request: request.answer(999),
        lambda request: request.head(200, Content_Length="many"),
        lambda request: request.head(200, Content_Length="-5"),
        lambda request: request.head(200, Transfer_Encoding="chunked, gzip", Content_Length=3),
    ]
    for number, answer in enumerate(answers):
        # A connection for each: what is left of the answer before is no part of this.
        def respond(request: Request, answer: Callable[[Request], None] = answer) -> None:
            request.close_connection = True
            answer(request)

        with scripted(respond) as server, pytest.raises(GlowplugError):
            read(origin(server, tmp_path, pace=HASTY), store=OpenStore())
        assert server.seen, number
