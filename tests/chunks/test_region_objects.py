"""A region's objects: a folder and a real S3 API behave alike, and a server that misbehaves does no harm."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.chunks.cloud_servers import AzureServer, GcsServer
from tests.chunks.servers import Conversation, HttpServer, S3Server, http_server, stalling

from glowplug.chunks.objects import ObjectInfo
from glowplug.chunks.region_objects import PART_BYTES, ObstoreObjects
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, NotFound, Unavailable

TIMEOUT_S = 30.0
META = {"ETag": '"x"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    server = GcsServer()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def azure() -> Iterator[AzureServer]:
    server = AzureServer()
    yield server
    server.kill()


@pytest.fixture(
    params=["folder", "folder url", "s3", "gcs", pytest.param("azure", marks=pytest.mark.nightly)]
)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObstoreObjects]:
    if request.param in ("s3", "gcs", "azure"):
        server: S3Server | GcsServer | AzureServer = request.getfixturevalue(request.param)
        made = server.objects(server.make_bucket("b" + str(abs(hash(str(tmp_path))))))
    else:
        made = ObstoreObjects(str(tmp_path) if request.param == "folder" else tmp_path.as_uri())
    yield made
    made.close()


def test_a_range_is_read_exactly(objects: ObstoreObjects) -> None:
    objects.write("packs/ab/one", b"0123456789", TIMEOUT_S)
    assert objects.read("packs/ab/one", 3, 4, TIMEOUT_S) == b"3456"
    assert objects.read("packs/ab/one", 0, 10, TIMEOUT_S) == b"0123456789"
    assert objects.read_all("packs/ab/one", 10, TIMEOUT_S) == b"0123456789"
    assert objects.tier == "region"


@pytest.mark.parametrize(("start", "size"), [(8, 3), (10, 1), (1000, 5), (0, 0), (-1, 2)])
def test_a_range_that_is_not_there_is_refused(objects: ObstoreObjects, start: int, size: int) -> None:
    objects.write("one", b"0123456789", TIMEOUT_S)
    with pytest.raises((InvalidInput, Unavailable)):
        objects.read("one", start, size, TIMEOUT_S)


def test_an_object_longer_than_its_reader_allows_is_refused(objects: ObstoreObjects) -> None:
    objects.write("one", b"0123456789", TIMEOUT_S)
    with pytest.raises(InvalidInput, match="more than 9"):
        objects.read_all("one", 9, TIMEOUT_S)


def test_what_is_not_there_is_not_found(objects: ObstoreObjects) -> None:
    with pytest.raises(NotFound) as caught:
        objects.read("packs/none", 0, 1, TIMEOUT_S)
    assert caught.value.details["key"] == "packs/none"
    with pytest.raises(NotFound):
        objects.read_all("packs/none", 10, TIMEOUT_S)


def test_writing_replaces_and_takes_files_and_any_buffer(objects: ObstoreObjects, tmp_path: Path) -> None:
    (tmp_path / "some-file").write_bytes(b"from a file")
    for data, content in (
        (b"first", b"first"),
        (bytearray(b"second"), b"second"),
        (memoryview(b"_third_")[1:6], b"third"),
        (tmp_path / "some-file", b"from a file"),
    ):
        objects.write("refs/team/name:1.json", data, TIMEOUT_S)
        assert objects.read_all("refs/team/name:1.json", 100, TIMEOUT_S) == content


def test_a_large_object_goes_in_parts_and_arrives_whole(objects: ObstoreObjects) -> None:
    content = bytes(range(256)) * ((2 * PART_BYTES + 12345) // 256)
    objects.write("packs/large", bytearray(content), TIMEOUT_S)
    assert objects.read_all("packs/large", len(content), TIMEOUT_S) == content
    assert objects.read("packs/large", PART_BYTES - 5, 10, TIMEOUT_S) == content[PART_BYTES - 5 :][:10]


def test_a_listing_is_in_key_order_and_below_its_prefix(objects: ObstoreObjects) -> None:
    for key in ("packs/b/2", "packs/a/10", "packs/b/1", "packs2/x", "images/y"):
        objects.write(key, key.encode(), TIMEOUT_S)
    assert list(objects.list("packs/")) == [
        ObjectInfo("packs/a/10", 10),
        ObjectInfo("packs/b/1", 9),
        ObjectInfo("packs/b/2", 9),
    ]
    assert list(objects.list("nothing/")) == []


def test_deleting_what_is_not_there_is_no_error(objects: ObstoreObjects) -> None:
    for key in ("a/1", "a/2", "a/3"):
        objects.write(key, b"x", TIMEOUT_S)
    objects.delete(["a/1", "a/none", "a/3"])
    objects.delete([])
    assert [info.key for info in objects.list("a/")] == ["a/2"]


@pytest.mark.parametrize("key", ["../x", "/x", "a/../b", "a//b", "a b", "a?b", "", "é", "a\nb", "x" * 600])
def test_a_key_that_is_none_never_reaches_the_region(objects: ObstoreObjects, key: str) -> None:
    tries: list[Callable[[], object]] = [
        lambda: objects.read(key, 0, 1, TIMEOUT_S),
        lambda: objects.read_all(key, 1, TIMEOUT_S),
        lambda: objects.write(key, b"", TIMEOUT_S),
        lambda: list(objects.list(key)),
        lambda: objects.delete([key]),
    ]
    for attempt in tries:
        with pytest.raises(InvalidInput):
            attempt()


def test_a_closed_region_says_so(objects: ObstoreObjects) -> None:
    objects.write("one", b"1", TIMEOUT_S)
    objects.close()
    objects.close()
    with pytest.raises(Unavailable, match="closed"):
        objects.read("one", 0, 1, TIMEOUT_S)


def test_a_signed_url_opens_one_object_without_credentials(s3: S3Server) -> None:
    objects = s3.objects(s3.make_bucket("signed"))
    objects.write("packs/one", b"content", TIMEOUT_S)
    url = objects.sign("packs/one", 60)
    assert url is not None
    assert "X-Amz-Signature" in url
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.read() == b"content"
    assert objects.origin_url() == f"{s3.url}/signed/some/prefix"
    objects.close()


def test_a_folder_has_no_signatures(tmp_path: Path) -> None:
    objects = ObstoreObjects(str(tmp_path))
    assert objects.sign("packs/one", 60) is None
    assert objects.origin_url() is None


def test_a_bucket_that_does_not_exist_is_said_when_writing(s3: S3Server) -> None:
    objects = s3.objects("no-such-bucket")
    with pytest.raises(Unavailable, match="no such bucket"):
        objects.write("x", b"x", TIMEOUT_S)
    with pytest.raises(GlowplugError):
        list(objects.list("packs/"))
    objects.close()


@pytest.mark.parametrize("url", ["ftp://x/y", "bucket", "", "relative/folder", "s3://", "file://"])
def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a region"):
        ObstoreObjects(url)


@pytest.mark.parametrize(
    ("url", "options", "variable", "path"),
    [
        ("gs://bucket/images", {"skip_signature": "true"}, "GOOGLE_BASE_URL", "/bucket/images/packs/one"),
        (
            "az://container/images",
            {"account_name": "tests", "account_key": "dGVzdHM="},
            "AZURE_STORAGE_ENDPOINT",
            "/container/images/packs/one",
        ),
    ],
)
def test_another_server_in_a_clouds_place_may_be_one_without_tls(
    monkeypatch: pytest.MonkeyPatch, url: str, options: dict[str, str], variable: str, path: str
) -> None:
    with http_server(lambda conversation: conversation.give(b"0123456789", META)) as server:
        monkeypatch.setenv(variable, server.url)
        objects = ObstoreObjects(url, options)
        assert objects.read("packs/one", 2, 5, TIMEOUT_S) == b"23456"
        objects.close()
    assert [unquote(target) for target in server.requests] == [path]


# --- an S3 server that misbehaves


@pytest.fixture
def bad_s3() -> Iterator[tuple[HttpServer, ObstoreObjects]]:
    with http_server(stalling) as server:
        options = {"endpoint": server.url, "access_key_id": "x", "secret_access_key": "SECRET", "region": "r"}
        objects = ObstoreObjects("s3://bucket", options)
        yield server, objects
        objects.close()


def test_a_server_that_says_nothing_is_given_up_at_the_deadline(
    bad_s3: tuple[HttpServer, ObstoreObjects],
) -> None:
    server, objects = bad_s3
    for attempt in (
        lambda: objects.read("k", 0, 10, 1.0),
        lambda: objects.read_all("k", 10, 1.0),
        lambda: objects.write("k", b"data", 1.0),
    ):
        with pytest.raises(DeadlineExceeded):
            attempt()
    assert server.requests


def test_a_server_that_sends_a_byte_at_a_time_is_given_up_at_the_deadline(
    bad_s3: tuple[HttpServer, ObstoreObjects],
) -> None:
    server, objects = bad_s3

    def drip(conversation: Conversation) -> None:
        conversation.answer(
            "206 Partial Content", b"", {"Content-Range": "bytes 0-9999/10000", **META}, length=10000
        )
        conversation.drip(bytes(10000))

    server.behaviour = drip
    with pytest.raises(DeadlineExceeded):
        objects.read("k", 0, 10000, 0.5)


@pytest.mark.parametrize(
    ("status", "body", "content_range"),
    [
        ("206 Partial Content", b"0123456789more", "bytes 0-9/100"),
        ("206 Partial Content", b"01234", "bytes 0-4/5"),
        ("206 Partial Content", b"0123456789", "bytes 5-14/100"),
        ("200 OK", b"0123456789", ""),
    ],
)
def test_an_answer_that_is_not_the_range_is_refused(
    bad_s3: tuple[HttpServer, ObstoreObjects], status: str, body: bytes, content_range: str
) -> None:
    server, objects = bad_s3
    told = {"Content-Range": content_range, **META} if content_range else META
    server.behaviour = lambda conversation: conversation.answer(status, body, told)
    with pytest.raises((InvalidInput, Unavailable)):
        objects.read("k", 0, 10, TIMEOUT_S)


@pytest.mark.parametrize("status", ["503 Slow Down", "429 Too Many Requests", "500 Oops"])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    bad_s3: tuple[HttpServer, ObstoreObjects], status: str
) -> None:
    server, objects = bad_s3

    def busy_once(conversation: Conversation) -> None:
        if len(server.requests) < 2:
            conversation.answer(status)
        else:
            conversation.give(b"0123456789")

    server.behaviour = busy_once
    try:
        assert objects.read("k", 0, 10, TIMEOUT_S) == b"0123456789"
    except InvalidInput as problem:  # obstore wants an ETag
        raise AssertionError(problem) from problem
    assert len(server.requests) == 2


def test_a_refusal_names_the_credentials_but_never_shows_them(
    bad_s3: tuple[HttpServer, ObstoreObjects],
) -> None:
    server, objects = bad_s3
    server.behaviour = lambda conversation: conversation.answer("403 Forbidden", b"<Error/>", META)
    with pytest.raises(Unavailable) as caught:
        objects.read("k", 0, 10, TIMEOUT_S)
    assert "credentials" in caught.value.remedy
    assert "SECRET" not in str(caught.value.to_dict())


def test_a_server_that_was_killed_is_unavailable_and_comes_back() -> None:
    server = S3Server()
    content = b"right" * 1000
    stop, right, failed = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    wrong: list[bytes] = []

    def read_on() -> None:
        while not stop.is_set():
            try:
                data = objects.read("packs/one", 0, len(content), TIMEOUT_S)
            except (Unavailable, DeadlineExceeded, NotFound):
                failed.release()
            else:
                right.release()
                if data != content:
                    wrong.append(bytes(data))

    try:
        objects = server.objects(server.make_bucket("bucket"))
        objects.write("packs/one", content, TIMEOUT_S)
        readers = [threading.Thread(target=read_on) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            assert taken(right, 6), "nothing was read before the server was killed"
            server.kill()
            assert taken(failed, 3), "no read failed while the server was dead"
            server.start()
            server.make_bucket("bucket")
            objects.write("packs/one", content, TIMEOUT_S)
            while right.acquire(blocking=False):
                pass
            assert taken(right, 6), "nothing was read when the server was back"
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert wrong == []
        objects.close()
    finally:
        server.kill()


def taken(semaphore: threading.Semaphore, times: int) -> bool:
    """Whether something happened so many times, in time."""
    return all(semaphore.acquire(timeout=2 * TIMEOUT_S) for _ in range(times))
