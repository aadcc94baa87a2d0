"""Reads from one repository of a registry: documents whole, blobs as they come.

Promises: the registry's token is sent to the registry's own address only; only blobs may be redirected, at
most five times and never to something less secure; every answer is limited in size and time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3

from glowplug.image.job import Job
from glowplug.image.origin.blob_transfer import Opener
from glowplug.image.origin.digest import Digest
from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.http_answers import failure, followed, read_small
from glowplug.image.origin.http_session import Interrupted, Session, Watch
from glowplug.image.origin.reference import DEFAULT_REGISTRY, Reference
from glowplug.image.origin.registry_auth import Authorizer
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import Unauthorized


class RegistryClient:
    """Safe to use from several threads, each with a session of its own."""

    def __init__(self, reference: Reference, credentials: Credentials | None, *, is_plain_http: bool) -> None:
        host = reference.registry
        if host == DEFAULT_REGISTRY:
            host = f"registry-1.{DEFAULT_REGISTRY}"  # the name in references is not the host's
        self._reference = reference
        self._base = f"{'http' if is_plain_http else 'https'}://{host}/v2/{reference.repository}"
        self._authorizer = Authorizer(
            reference.registry, reference.repository, credentials, is_plain_http=is_plain_http
        )

    def document(
        self, path: str, accept: str, limit_bytes: int, session: Session, patience: Patience, job: Job
    ) -> tuple[bytes, str]:
        """A small answer as a whole, and its media type. Not checked against any digest."""
        stage = f"asking {self._reference.registry}"
        while True:
            try:
                with Watch(session, job, stage, is_long=False):
                    response = self._open(path, {"Accept": accept}, session, job)
                    data = read_small(response, limit_bytes, "the image's name")
                    return data, response.headers.get("Content-Type", "").partition(";")[0].strip()
            except Interrupted as problem:
                session.close()
                patience.after(problem, job, stage)

    def blob(self, digest: Digest) -> Opener:
        """Opens this blob, for a transfer."""
        return lambda session, headers, job: self._open(f"blobs/{digest}", headers, session, job)

    def _open(
        self, path: str, headers: Mapping[str, str], session: Session, job: Job
    ) -> urllib3.BaseHTTPResponse:
        response = followed(
            f"{self._base}/{path}",
            lambda url: self._ask(url, headers, session),
            may_move=path.startswith("blobs/"),
        )
        if response.status in (200, 206):
            return response
        who = f"The registry {self._reference.registry}"
        problem = failure(response, who, f"{self._reference}, or not all of it", job.clock)
        if isinstance(problem, Unauthorized):
            raise self._authorizer.denied(problem.details) from problem
        raise problem

    def _ask(self, url: str, headers: Mapping[str, str], session: Session) -> urllib3.BaseHTTPResponse:
        if _address(url) != _address(self._base):
            return session.request("GET", url, headers)
        sent = self._authorizer.header
        response = session.request("GET", url, _with(headers, sent))
        if response.status != 401:
            return response
        response.close()
        self._authorizer.answer(response.headers.getlist("WWW-Authenticate"), sent, session)
        return session.request("GET", url, _with(headers, self._authorizer.header))


def is_loopback(registry: str) -> bool:
    """Whether the registry is this machine, where encryption protects nothing."""
    host = urlsplit(f"//{registry}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _with(headers: Mapping[str, str], authorization: str) -> dict[str, str]:
    return {**headers, "Authorization": authorization} if authorization else dict(headers)


def _address(url: str) -> tuple[str | None, str | None, int]:
    # By the parser that decides where the request goes: another might see the registry in what is not.
    parts = urllib3.util.parse_url(url)
    return parts.scheme, parts.host, parts.port or (443 if parts.scheme == "https" else 80)
