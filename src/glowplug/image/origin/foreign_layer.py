"""Layers that their owner does not want in registries: the manifest says at which addresses they lie instead.

An address in a manifest is a stranger's. It gets a bare request (no credentials, no token), and what it gives
counts only if it has the layer's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO
from urllib.parse import urlsplit

import urllib3

from glowplug.image.job import Job
from glowplug.image.origin.blob_transfer import BlobTransfer, Opener
from glowplug.image.origin.http_answers import check_address, failure, followed
from glowplug.image.origin.http_session import Session
from glowplug.image.origin.oci_manifest import Descriptor
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import InvalidInput, NotFound, Unauthorized, Unavailable

MAX_ADDRESSES = 5  # tried


def fetch_foreign(
    blob: Descriptor, target: IO[bytes], session: Session, patience: Patience, job: Job
) -> None:
    """Fill ``target`` from the first of its addresses that has it. Raises Unavailable if none has."""
    urls = (blob.urls or [])[:MAX_ADDRESSES]
    for url in urls:
        check_address(url)
    problems: list[str] = []
    for url in urls:
        try:
            transfer = BlobTransfer(blob.digest, blob.size_bytes, target, f"the foreign layer {blob.digest}")
            transfer.run(_opener(url), session, patience.afresh(), job)
        except (NotFound, Unauthorized, Unavailable, InvalidInput) as problem:
            job.check("fetching a foreign layer")
            problems.append(f"{urlsplit(url).netloc}: {problem.message}")
            target.seek(0)
            target.truncate()
        else:
            return
    raise Unavailable(
        "The image has a foreign layer, kept outside of the registry, that cannot be fetched.",
        remedy="Push the image with all of its layers, see Docker's allow-nondistributable-artifacts.",
        digest=str(blob.digest),
        tried=problems,
    )


def _opener(url: str) -> Opener:
    def open_it(session: Session, headers: Mapping[str, str], job: Job) -> urllib3.BaseHTTPResponse:
        response = followed(url, lambda place: session.request("GET", place, headers), may_move=True)
        if response.status not in (200, 206):
            raise failure(response, urlsplit(url).netloc, "the layer", job.clock)
        return response

    return open_it
