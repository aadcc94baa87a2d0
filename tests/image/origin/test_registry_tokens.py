"""Registries that ask for what is not theirs: tokens and passwords stay where they belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.image.origin.hostile_kit import (
    CONTENT,
    LOGIN,
    TWICE,
    long_image,
    origin,
    read_file,
)
from tests.image.origin.oci_images import (
    BlobFolder,
)
from tests.image.origin.origin_kit import read
from tests.image.origin.registry_server import Request, ScriptedServer, scripted, serve_layout

from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.types.errors import (
    InvalidInput,
    Unauthorized,
    Unavailable,
)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return long_image(tmp_path / "blobs")


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


def through_proxy(server: ScriptedServer, tmp_path: Path, *, is_plain_http: bool) -> RegistryOrigin:
    proxy = f"http://me:secret@{server.address}"
    return RegistryOrigin(
        Reference.parse("registry.invalid:5000/team/app:app"),
        scratch=tmp_path / "scratch",
        platform=Platform("linux", "amd64"),
        is_plain_http=is_plain_http,
        environ={"HOME": str(tmp_path), "http_proxy": proxy, "HTTPS_PROXY": proxy},
        patience=TWICE,
    )


def test_the_proxy_of_the_environment_is_used(blobs: BlobFolder, tmp_path: Path) -> None:
    def respond(request: Request) -> None:
        assert request.headers["Proxy-Authorization"].startswith("Basic ")
        request.path = request.path.removeprefix("http://registry.invalid:5000")
        serve_layout(blobs, request)

    with scripted(respond) as server:
        assert read_file(through_proxy(server, tmp_path, is_plain_http=True)) == CONTENT
    assert all(path.startswith("http://registry.invalid:5000/v2/") for path in server.paths())


def test_a_proxy_that_refuses_is_told(tmp_path: Path) -> None:
    with (
        scripted(lambda request: request.answer(403)) as server,
        pytest.raises(Unavailable, match="ProxyError"),
    ):
        read(through_proxy(server, tmp_path, is_plain_http=False))
    assert server.paths() == ["registry.invalid:5000"] * TWICE.attempts
