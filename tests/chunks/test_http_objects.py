"""Reading over HTTP from servers that behave, and from servers that do all that a server can do wrong."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.chunks.servers import Behaviour, Conversation, HttpServer, http_server, stalling
from tests.ports import free_port

from glowplug.chunks.http_address import HttpAddress, Resolver
from glowplug.chunks.http_objects import PAUSES_S, HttpObjects
from glowplug.chunks.http_server import HttpServer as Client
from glowplug.chunks.http_server import Wanted
from glowplug.types.clock import SystemClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, NotFound, Unavailable

CONTENT = bytes(range(256)) * 4096
TIMEOUT_S = 20.0
SHORT_S = 0.4


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server(lambda conversation: conversation.give(CONTENT)) as made:
        yield made


@pytest.fixture
def objects(server: HttpServer) -> Iterator[HttpObjects]:
    made = HttpObjects(server.url, pause=lambda pause_s: None)
    yield made
    made.close()


def test_a_range_is_read_exactly(objects: HttpObjects) -> None:
    assert objects.read("packs/one", 1000, 70_000, TIMEOUT_S) == CONTENT[1000:71_000]
    assert objects.tier == "region"


def test_all_of_an_object_is_read(objects: HttpObjects) -> None:
    assert objects.read_all("images/one", len(CONTENT), TIMEOUT_S) == CONTENT
    assert objects.read_all("images/one", 10 * len(CONTENT), TIMEOUT_S) == CONTENT


def test_an_object_longer_than_its_reader_allows_is_refused(objects: HttpObjects) -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        objects.read_all("images/one", len(CONTENT) - 1, TIMEOUT_S)


def test_a_server_without_ranges_can_give_whole_objects_only(
    server: HttpServer, objects: HttpObjects
) -> None:
    server.behaviour = lambda conversation: conversation.answer("200 OK", CONTENT)
    assert objects.read_all("one", len(CONTENT), TIMEOUT_S) == CONTENT
    with pytest.raises(InvalidInput):
        objects.read_all("one", len(CONTENT) - 1, TIMEOUT_S)
    with pytest.raises(InvalidInput, match="whole object"):
        objects.read("one", 0, 10, TIMEOUT_S)


def test_the_url_may_have_a_path(server: HttpServer) -> None:
    objects = HttpObjects(f"{server.url}/some/prefix/")
    objects.read("packs/one", 0, 10, TIMEOUT_S)
    assert server.requests == ["/some/prefix/packs/one"]


def test_connections_are_kept_and_one_that_was_closed_meanwhile_is_no_failure(
    server: HttpServer, objects: HttpObjects
) -> None:
    ports = set()

    def note(conversation: Conversation) -> None:
        ports.add(conversation.connection.getpeername()[1])
        conversation.give(CONTENT)

    server.behaviour = note
    for _ in range(5):
        objects.read("one", 0, 10, TIMEOUT_S)
    assert len(ports) == 1

    def close_after(conversation: Conversation) -> None:
        conversation.give(CONTENT)
        conversation.connection.close()

    server.behaviour = close_after
    for _ in range(5):
        assert objects.read("one", 5, 10, TIMEOUT_S) == CONTENT[5:15]


def test_many_threads_read_at_once(objects: HttpObjects) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda at: objects.read("one", at, 5000, TIMEOUT_S), range(0, 200_000, 1000))
        assert all(
            data == CONTENT[at : at + 5000] for at, data in zip(range(0, 200_000, 1000), found, strict=True)
        )


def test_writing_listing_and_deleting_say_what_to_use_instead(objects: HttpObjects) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: objects.write("one", b"", TIMEOUT_S),
        lambda: objects.list("packs/"),
        lambda: objects.delete(["one"]),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidInput, match="only be read"):
            attempt()


# --- answers that are wrong


def replying(status: str, body: bytes = b"", length: int | None = None, **headers: str) -> Behaviour:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda conversation: conversation.answer(status, body, named, length=length)


def sending(data: bytes) -> Behaviour:
    def behave(conversation: Conversation) -> None:
        conversation.send(data)
        conversation.connection.close()

    return behave


OK_RANGE = "bytes 100-109/1000"
WRONG: dict[str, Behaviour] = {
    "another range": replying("206 OK", b"0123456789", Content_Range="bytes 0-9/1000"),
    "a shorter range": replying("206 OK", b"01234", Content_Range="bytes 100-104/1000"),
    "a longer range": replying("206 OK", b"0123456789a", Content_Range="bytes 100-110/1000"),
    "a range unlike its length": replying("206 OK", b"01234", Content_Range=OK_RANGE),
    "no range": replying("206 OK", b"0123456789"),
    "several ranges": replying("206 OK", b"0123456789", Content_Type="multipart/byteranges; boundary=x"),
    "the whole object": replying("200 OK", b"0123456789" * 100),
    "a redirect": replying("302 Found", b"", Location="http://169.254.169.254/latest"),
    "a permanent redirect": replying("301 Moved", b"", Location="/elsewhere"),
    "nothing new": replying("304 Not Modified"),
    "no such range": replying("416 Range Not Satisfiable"),
    "a strange status": replying("299 Fine"),
    "an encoding": replying("206 OK", b"0123456789", Content_Range=OK_RANGE, Content_Encoding="gzip"),
    "a negative length": sending(b"HTTP/1.1 206 OK\r\nContent-Length: -10\r\n\r\n0123456789"),
    "a huge length": sending(b"HTTP/1.1 206 OK\r\nContent-Length: 9" + b"0" * 20 + b"\r\n\r\n"),
    "two lengths": sending(b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n0123456789"),
    "no length": sending(b"HTTP/1.1 206 OK\r\n\r\n0123456789"),
    "chunks": sending(b"HTTP/1.1 206 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"),
    "garbage": sending(bytes(range(256)) * 2 + b"\r\n\r\n"),
    "another protocol": sending(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "HTTP of the future": sending(b"HTTP/3.0 206 OK\r\n\r\n"),
    "a header that is none": sending(b"HTTP/1.1 206 OK\r\nno colon here\r\n\r\n"),
    "a folded header": sending(b"HTTP/1.1 206 OK\r\nA: b\r\n c\r\n\r\n"),
    "headers without end": sending(b"HTTP/1.1 206 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n"),
    "only interim answers": sending(b"HTTP/1.1 100 Continue\r\n\r\n" * 10),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_refused(server: HttpServer, objects: HttpObjects, what: str) -> None:
    server.behaviour = WRONG[what]
    with pytest.raises(InvalidInput):
        objects.read("packs/one", 100, 10, TIMEOUT_S)
    assert len(server.requests) == 1
    server.behaviour = lambda conversation: conversation.give(CONTENT)
    assert objects.read("packs/one", 100, 10, TIMEOUT_S) == CONTENT[100:110]


def test_a_redirect_is_not_followed(server: HttpServer, objects: HttpObjects) -> None:
    with http_server(lambda conversation: conversation.give(CONTENT)) as elsewhere:
        server.behaviour = replying("302 Found", b"", Location=f"{elsewhere.url}/packs/one")
        with pytest.raises(InvalidInput, match="redirects elsewhere"):
            objects.read("packs/one", 100, 10, TIMEOUT_S)
        assert elsewhere.requests == []


def test_interim_answers_are_read_over(server: HttpServer, objects: HttpObjects) -> None:
    def behave(conversation: Conversation) -> None:
        conversation.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        conversation.give(CONTENT)

    server.behaviour = behave
    assert objects.read("one", 3, 4, TIMEOUT_S) == CONTENT[3:7]


@pytest.mark.parametrize(
    ("piece_bytes", "padding_bytes"),
    [(1, 0), (3, 0), (50, 4000), (4095, 4000), (4096, 4000), (4097, 9000), (10**6, 9000)],
)
def test_an_answer_in_pieces_of_any_size_is_understood(
    server: HttpServer, objects: HttpObjects, piece_bytes: int, padding_bytes: int
) -> None:
    def behave(conversation: Conversation) -> None:
        start, end = conversation.wanted
        head = f"HTTP/1.1 206 OK\r\nContent-Range: bytes {start}-{end - 1}/{len(CONTENT)}\r\n"
        head += f"X-Padding: {'x' * padding_bytes}\r\nContent-Length: {end - start}\r\n\r\n"
        data = head.encode() + CONTENT[start:end]
        for at in range(0, len(data), piece_bytes):
            conversation.send(data[at : at + piece_bytes])

    server.behaviour = behave
    for start in (0, 700):
        assert objects.read("one", start, 300, TIMEOUT_S) == CONTENT[start : start + 300]


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
def test_what_is_not_there_is_not_found(server: HttpServer, objects: HttpObjects, status: str) -> None:
    server.behaviour = replying(status, b"<html>no</html>")
    with pytest.raises(NotFound):
        objects.read("packs/one", 0, 10, TIMEOUT_S)
    assert len(server.requests) == 1


# --- servers that fail


@pytest.mark.parametrize("status", ["500 Oops", "502 Bad", "503 Busy", "429 Slow", "403 No", "401 Who"])
def test_a_server_that_fails_is_asked_a_few_times(
    server: HttpServer, objects: HttpObjects, status: str
) -> None:
    server.behaviour = replying(status, b"sorry")
    with pytest.raises(Unavailable, match=status[:3]):
        objects.read("one", 0, 10, TIMEOUT_S)
    assert len(server.requests) == 1 + len(PAUSES_S)


def test_a_server_that_fails_once_is_forgiven(server: HttpServer, objects: HttpObjects) -> None:
    def behave(conversation: Conversation) -> None:
        if len(server.requests) == 1:
            conversation.answer("503 Busy")
        else:
            conversation.give(CONTENT)

    server.behaviour = behave
    assert objects.read("one", 0, 10, TIMEOUT_S) == CONTENT[:10]


def test_an_answer_that_breaks_off_is_a_failure(server: HttpServer, objects: HttpObjects) -> None:
    def behave(conversation: Conversation) -> None:
        conversation.answer("206 OK", b"01234", {"Content-Range": OK_RANGE}, length=10)
        conversation.connection.close()

    server.behaviour = behave
    with pytest.raises(Unavailable, match="5 of 10"):
        objects.read("one", 100, 10, TIMEOUT_S)


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    objects = HttpObjects(f"http://127.0.0.1:{free_port()}", pause=lambda pause_s: None)
    with pytest.raises(Unavailable, match="refused"):
        objects.read("one", 0, 10, TIMEOUT_S)


def test_a_host_that_does_not_exist_is_unavailable() -> None:
    objects = HttpObjects("http://does-not-exist.invalid", pause=lambda pause_s: None)
    with pytest.raises((Unavailable, DeadlineExceeded)):
        objects.read("one", 0, 10, TIMEOUT_S)


# --- servers that take their time


def dripping_body(conversation: Conversation) -> None:
    conversation.answer("206 OK", b"", {"Content-Range": "bytes 0-99999/100000"}, length=100_000)
    conversation.drip(bytes(100_000))


def dripping_head(conversation: Conversation) -> None:
    conversation.drip(b"HTTP/1.1 206 OK\r\nX-Long: " + b"x" * 30_000)


def dripping_error(conversation: Conversation) -> None:
    conversation.answer("500 Oops", b"", length=50_000)
    conversation.drip(bytes(50_000))


@pytest.mark.parametrize("behaviour", [stalling, dripping_body, dripping_head])
def test_a_slow_server_is_given_up_at_the_deadline(
    server: HttpServer, objects: HttpObjects, behaviour: Behaviour
) -> None:
    server.behaviour = behaviour
    with pytest.raises(DeadlineExceeded):
        objects.read("one", 0, 100_000, SHORT_S)


def test_an_error_that_drips_is_still_told_as_what_it_is(server: HttpServer, objects: HttpObjects) -> None:
    server.behaviour = dripping_error
    with pytest.raises(Unavailable, match="500"):
        objects.read("one", 0, 10, TIMEOUT_S)


@pytest.mark.parametrize("behaviour", [stalling, dripping_body, dripping_head])
def test_a_request_can_be_called_off_while_it_waits(behaviour: Behaviour) -> None:
    has_come = threading.Event()

    def behave(conversation: Conversation) -> None:
        has_come.set()
        behaviour(conversation)

    with http_server(behave) as server:
        clock = SystemClock()
        client = Client(server.url, clock, Resolver(clock))
        request = client.request(Wanted("one", 0, 100_000))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(request.run, clock.monotonic() + 60)
            assert has_come.wait(TIMEOUT_S)
            request.cancel()
            with pytest.raises(Unavailable):
                running.result(TIMEOUT_S)
        client.close()


def test_a_request_that_was_called_off_before_it_ran_fails_at_once(server: HttpServer) -> None:
    clock = SystemClock()
    client = Client(server.url, clock, Resolver(clock))
    request = client.request(Wanted("one", 0, 10))
    request.cancel()
    with pytest.raises(Unavailable):
        request.run(clock.monotonic() + 60)
    assert server.requests == []


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder


def test_tls_is_spoken_and_its_certificate_checked(certificate: Path, tmp_path: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with http_server(lambda conversation: conversation.give(CONTENT)) as server:
        server.wrap(server_side)
        url = f"https://localhost:{server.port}"
        trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        objects = HttpObjects(url, tls=trusting)
        assert objects.read("one", 10, 500_000, TIMEOUT_S) == CONTENT[10:500_010]
        assert objects.read("one", 0, 10, TIMEOUT_S) == CONTENT[:10]
        server.behaviour = dripping_body
        with pytest.raises(DeadlineExceeded):
            objects.read("one", 0, 100_000, SHORT_S)
        server.behaviour = dripping_head
        with pytest.raises(DeadlineExceeded):
            objects.read("one", 0, 100_000, SHORT_S)
        objects.close()
        stranger = HttpObjects(url, pause=lambda pause_s: None)
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            stranger.read("one", 0, 10, TIMEOUT_S)


# --- addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host", "http://host"),
        ("https://host:443/", "https://host"),
        ("http://10.0.0.1:8080/a/b-c_d.e/", "http://10.0.0.1:8080/a/b-c_d.e"),
        ("http://[::1]:81", "http://[::1]:81"),
    ],
)
def test_an_address_is_shown_as_it_is_used(url: str, shown: str) -> None:
    assert str(HttpAddress.parse(url)) == shown


@pytest.mark.parametrize(
    "url",
    ["", "host", "ftp://host", "http://", "http://user:secret@host", "http://host/?q", "http://host/#f",
     "http://host:99999", "http://host:x", "http://host/a b", "http://host/../x", "http://ho st",
     "http://host/a\r\nX: y", "http://host;/", 'http://host/"', "http://[::1", "http://host/$x", "http://host/{x}"],
)  # fmt: skip
def test_an_address_that_could_mean_something_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        HttpAddress.parse(url)
    assert "secret" not in str(caught.value)


def test_a_signature_is_not_repeated_in_errors() -> None:
    objects = HttpObjects(f"http://127.0.0.1:{free_port()}", pause=lambda pause_s: None)
    clock = SystemClock()
    client = Client(objects.url, clock, Resolver(clock))
    with pytest.raises(GlowplugError) as caught:
        client.request(Wanted("one", 0, 1, query="X-Amz-Signature=SECRET")).run(clock.monotonic() + 5)
    assert "SECRET" not in str(caught.value.to_dict())


def test_a_lookup_that_hangs_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        released.wait(60)
        return []

    monkeypatch.setattr("glowplug.chunks.http_address.socket.getaddrinfo", hang)
    objects = HttpObjects("http://some-name")
    with pytest.raises(DeadlineExceeded):
        objects.read("one", 0, 10, 0.2)
    released.set()
