"""Registries whose small answers are too long, too late, or of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.image.origin.hostile_kit import (
    CONTENT,
    HASTY,
    OFTEN,
    layer_of,
    long_image,
    origin,
    read_file,
)
from tests.image.origin.oci_images import (
    BlobFolder,
    digest_of,
)
from tests.image.origin.origin_kit import OpenStore, read
from tests.image.origin.registry_server import Request, scripted, serve_layout

from glowplug.image.origin.oci_manifest import DOCKER_INDEX, MAX_DOCUMENT_BYTES, OCI_MANIFEST
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.types.errors import (
    GlowplugError,
    InvalidInput,
    NotFound,
    Unavailable,
)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return long_image(tmp_path / "blobs")


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
