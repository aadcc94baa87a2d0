"""Who we are to a registry: Docker's token protocol, or a password with every request.

The registry says where tokens are issued, so credentials go where *it* says; whoever enters a password for a
registry trusts it with that. They never go out unencrypted unless the registry itself is spoken to so. Tokens
are asked for reading one repository, and only :class:`~glowplug.image.origin.registry_client.RegistryClient`
adds them, to requests to the registry's own address.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.http_answers import read_small
from glowplug.image.origin.http_session import MAX_URL_CHARACTERS, Interrupted, Session
from glowplug.image.origin.www_authenticate import Challenge, parse_challenges
from glowplug.types.errors import InvalidInput, Unauthorized

MAX_TOKEN_ANSWER_BYTES = 256 << 10
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_CLIENT_ID = "glowplug"


class _TokenAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    token: str | None = None
    access_token: str | None = None


class Authorizer:
    """The ``Authorization`` header for one repository, renewed when the registry refuses it. Thread-safe."""

    def __init__(
        self, registry: str, repository: str, credentials: Credentials | None, *, is_plain_http: bool
    ) -> None:
        self._registry = registry
        self._scope = f"repository:{repository}:pull"
        self._credentials = credentials
        self._is_plain_http = is_plain_http
        self._lock = threading.Lock()
        self._header = ""

    @property
    def header(self) -> str:
        """What to send; empty: nothing yet."""
        return self._header

    def answer(self, challenges: Sequence[str], refused: str, session: Session) -> None:
        """Get another header than ``refused``, as the registry's challenge asks. Raises Unauthorized."""
        with self._lock:
            if self._header != refused:
                return  # another thread was faster
            offered = parse_challenges(challenges)
            for challenge in offered:
                if challenge.scheme == "bearer":
                    self._header = f"Bearer {self._fetch_token(challenge, session)}"
                    return
            if any(challenge.scheme == "basic" for challenge in offered) and self._credentials is not None:
                self._header = _basic(self._credentials)
                if self._header != refused:
                    return
            raise self.denied()

    def denied(self, details: Mapping[str, object] | None = None) -> Unauthorized:
        """The error of a registry that knows who asks, or asks and gets no answer."""
        more = dict(details or {})
        name = self._registry
        if self._credentials is None:
            return Unauthorized(
                f"The registry {name} wants a login, or has no such image.",
                remedy=f"Check the name; if it is right, run `docker login {name}`.",
                **more,
            )
        return Unauthorized(
            f"The registry {name} does not let {self._credentials.username[:100]!r} read this image.",
            remedy=f"Run `docker login {name}` with a user that may.",
            **more,
        )

    def _fetch_token(self, challenge: Challenge, session: Session) -> str:
        realm = self._checked_realm(challenge.parameters.get("realm", ""))
        question = {"service": challenge.parameters.get("service", ""), "scope": self._scope}
        credentials = self._credentials
        headers = {}
        if credentials is not None and credentials.identity_token:
            form = {**question, "grant_type": "refresh_token", "client_id": _CLIENT_ID}
            body = urlencode({**form, "refresh_token": credentials.identity_token}).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            response = session.request("POST", realm, headers, body)
        else:
            if credentials is not None:
                headers["Authorization"] = _basic(credentials)
            separator = "&" if urlsplit(realm).query else "?"
            response = session.request("GET", f"{realm}{separator}{urlencode(question)}", headers)
        if response.status in (429, 500, 502, 503, 504):
            raise Interrupted(f"The login server of {self._registry} answers with {response.status}.")
        data = read_small(response, MAX_TOKEN_ANSWER_BYTES, "a token")
        if response.status != 200:
            raise self.denied()
        return token_in(data, self._registry)

    def _checked_realm(self, realm: str) -> str:
        try:
            parts = urlsplit(realm)
            is_usable = bool(parts.hostname) and parts.username is None and len(realm) < MAX_URL_CHARACTERS
        except ValueError:
            is_usable = False
        if not is_usable or parts.fragment or parts.scheme not in ("https", "http"):
            raise InvalidInput(
                f"The registry {self._registry} names no usable login server.", remedy="Tell who runs it."
            )
        if parts.scheme == "http" and not self._is_plain_http:
            raise InvalidInput(
                f"The registry {self._registry} wants a login over unencrypted HTTP.",
                remedy="Nothing was sent. Tell who runs it.",
            )
        return realm


def token_in(data: bytes, registry: str) -> str:
    """The token of a login server's answer. Raises InvalidInput."""
    try:
        answer = _TokenAnswer.model_validate_json(data)
    except ValidationError:
        answer = _TokenAnswer()
    token = answer.token or answer.access_token or ""
    if not _TOKEN.fullmatch(token):
        raise InvalidInput(f"The login server of {registry} gave no token.", remedy="Tell who runs it.")
    return token


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
