"""Registries behind TLS: trusted by certificate only, never left for less, never waited for."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.image.origin.oci_images import BlobFolder, simple_layout, tar_of
from tests.image.origin.origin_kit import paths, read
from tests.image.origin.registry_server import Request, scripted, serve_layout, tls_certificate

from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.http_session import Pace
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import InvalidInput, Unavailable

ONCE = Patience(attempts=1)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return simple_layout(tmp_path / "blobs", tar_of({"file": b"1"}))


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context whose certificate this process trusts."""
    certificate, context = tls_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return context


def origin(address: str, tmp_path: Path, **options: Any) -> RegistryOrigin:
    return RegistryOrigin(
        Reference.parse(f"{address}/team/app:app"),
        scratch=tmp_path / "scratch",
        platform=Platform("linux", "amd64"),
        environ={"HOME": str(tmp_path)},
        is_plain_http=False,
        patience=ONCE,
        **options,
    )


def test_a_registry_behind_tls_is_read(blobs: BlobFolder, tmp_path: Path, tls: ssl.SSLContext) -> None:
    with scripted(lambda request: serve_layout(blobs, request), tls) as server:
        assert paths(read(origin(server.address, tmp_path))[0]) == [b"/file"]


def test_a_certificate_that_nobody_vouches_for_is_refused(blobs: BlobFolder, tmp_path: Path) -> None:
    _, context = tls_certificate(tmp_path)
    with (
        scripted(lambda request: serve_layout(blobs, request), context) as server,
        pytest.raises(Unavailable, match="SSLError"),
    ):
        read(origin(server.address, tmp_path))
    assert server.seen == []


def test_a_redirect_to_unencrypted_http_is_not_followed(
    blobs: BlobFolder, tmp_path: Path, tls: ssl.SSLContext
) -> None:
    with scripted(lambda request: serve_layout(blobs, request)) as plain:

        def respond(request: Request) -> None:
            if "/blobs/" in request.path:
                request.answer(302, Location=f"http://{plain.address}{request.path}")
            else:
                serve_layout(blobs, request)

        with scripted(respond, tls) as server, pytest.raises(InvalidInput, match="unencrypted"):
            read(origin(server.address, tmp_path))
        assert plain.seen == []


def test_a_password_is_not_sent_to_a_login_server_without_tls(tmp_path: Path, tls: ssl.SSLContext) -> None:
    with scripted(lambda request: request.answer(200, b'{"token": "t"}')) as plain:

        def respond(request: Request) -> None:
            request.answer(401, WWW_Authenticate=f'Bearer realm="http://{plain.address}/token"')

        with scripted(respond, tls) as server, pytest.raises(InvalidInput, match="Nothing was sent"):
            read(origin(server.address, tmp_path, credentials=Credentials("keeper", "secret")))
        assert plain.seen == []


@pytest.mark.parametrize("is_trickling", [False, True])
def test_a_handshake_that_never_ends_is_given_up(tmp_path: Path, is_trickling: bool) -> None:
    pace = Pace(connect_s=0.5, answer_s=0.6)
    with slow_handshake(is_trickling) as address, pytest.raises(Unavailable):
        read(origin(address, tmp_path, pace=pace))


@contextmanager
def slow_handshake(is_trickling: bool) -> Iterator[str]:
    """A server that takes connections and says nothing, or the start of a long TLS record byte by byte."""
    closing = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                for number in range(16_000):
                    if closing.wait(0.02):
                        return
                    if is_trickling:
                        try:
                            line.sendall(b"\x16\x03\x03\x3e\x80"[number : number + 1] or b"\2")
                        except OSError:
                            return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            closing.set()
            thread.join()
