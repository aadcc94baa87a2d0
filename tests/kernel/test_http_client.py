"""One shape for all our clients: what is sent, what comes back, and whose words a failure is told in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from tests.ports import free_port

from glowplug.kernel.http_client import HttpClient
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, Unavailable


class InOurWords:
    """Says which of the two it was asked for."""

    def no_answer(self, error: httpx.HTTPError) -> GlowplugError:
        return Unavailable(f"no answer: {type(error).__name__}")

    def refused(self, answer: httpx.Response) -> GlowplugError:
        return Conflict(f"refused: {answer.status_code} {answer.text}")


class Handler(BaseHTTPRequestHandler):
    """Tells what it was sent; ``/refuse``, ``/redirect``, ``/half`` and ``/slow`` do as they say."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        told = {"method": self.command, "path": self.path, "body": body.decode(), "sent": dict(self.headers)}
        text = json.dumps(told).encode()
        status = {"/refuse": 409, "/redirect": 301}.get(self.path, 200)
        if self.path == "/slow":
            time.sleep(1.0)
        self.send_response(status)
        self.send_header("content-length", str(len(text) + (1 if self.path == "/half" else 0)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.fixture
def client(url: str) -> Iterator[HttpClient]:
    with HttpClient(url, InOurWords(), timeout_s=10.0, headers={"Authorization": "Bearer us"}) as made:
        yield made


def test_what_is_sent_is_json_with_our_headers_and_without_what_is_none(client: HttpClient) -> None:
    told = json.loads(client.request("POST", "/x", {"a": 1, "b": None}, body={"c": [2]}))
    assert (told["method"], told["path"], json.loads(told["body"])) == ("POST", "/x?a=1", {"c": [2]})
    assert told["sent"]["Authorization"] == "Bearer us"
    patch = {"Content-Type": "application/merge-patch+json"}
    told = json.loads(client.request("PATCH", "/x", body={}, headers=patch))
    assert (told["body"], told["sent"]["Content-Type"]) == ("{}", patch["Content-Type"])
    assert json.loads(client.request("DELETE", "/x"))["body"] == ""


@pytest.mark.parametrize("path", ["/refuse", "/redirect"])
def test_what_is_no_success_is_told_in_the_callers_words(client: HttpClient, path: str) -> None:
    with pytest.raises(Conflict, match=r"refused: [34].*GET"):
        client.request("GET", path)
    with pytest.raises(Conflict, match=r"refused: [34].*GET"), client.stream("GET", path, silence_s=5.0):
        pytest.fail("there is nothing to read")


def test_a_stream_is_read_bit_by_bit_and_may_break(client: HttpClient) -> None:
    with client.stream("GET", "/x", silence_s=5.0) as answer:
        assert json.loads(b"".join(answer.iter_bytes()))["path"] == "/x"
    with (
        pytest.raises(Unavailable, match="no answer: RemoteProtocolError"),
        client.stream("GET", "/half", silence_s=5.0) as answer,
    ):
        list(answer.iter_bytes())


def test_nobody_waits_longer_than_was_said(client: HttpClient) -> None:
    with pytest.raises(Unavailable, match="ReadTimeout"):
        client.request("GET", "/slow", timeout_s=0.1)
    with (
        HttpClient(f"http://127.0.0.1:{free_port()}", InOurWords(), timeout_s=10.0) as nobody,
        pytest.raises(Unavailable, match="ConnectError"),
    ):
        nobody.request("GET", "/")


def test_a_proxy_of_the_environment_has_no_business_on_this_machine(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with HttpClient(url, InOurWords(), timeout_s=10.0) as client:
        assert json.loads(client.request("GET", "/x"))["path"] == "/x"
    with HttpClient(url, InOurWords(), timeout_s=10.0, is_proxied=True) as client, pytest.raises(Unavailable):
        client.request("GET", "/x")


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://[", "http://a:b:c"])
def test_what_is_no_address_is_said_to_be_none(url: str) -> None:
    with pytest.raises(InvalidInput, match="not the address"):
        HttpClient(url, InOurWords(), timeout_s=1.0)
    with pytest.raises(InvalidInput, match="no header"):
        HttpClient("http://a", InOurWords(), timeout_s=1.0, headers={"Authorization": "Bearer \u00e9\u4e00"})
