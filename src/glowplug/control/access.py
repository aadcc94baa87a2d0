"""Who may use the control API: whoever holds the token, and whoever is root of this machine.

"Root of this machine" means a connection from loopback whose socket is root's or our own user's
(:mod:`glowplug.control.peer_user`), and that nothing suggests was made on somebody else's behalf: no
forwarding header (a reverse proxy in front of us also connects from loopback), a Host that names loopback (a
web page whose name was rebound to 127.0.0.1 does not), and no foreign Origin (a page in this machine's
browser).
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from glowplug.control import headers
from glowplug.control.answers import Scope
from glowplug.control.headers import RawHeaders
from glowplug.control.peer_user import Address
from glowplug.types.errors import SystemUnfit, Unauthorized

_TOKEN_BYTES = 32
# A machine that joins has no API token yet: these bring proofs of their own, checked where they lead.
_OPEN_PATHS = frozenset({"/api/v1/nodes/join", "/api/v1/nodes/renew", "/api/v1/engine/join"})
_FORWARDING = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


def load_or_create_token(path: Path) -> str:
    """The API token in ``path`` (mode 0600), made on first use."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if len(token) < 16:
            raise SystemUnfit(
                f"The token file {path} holds no usable token.", remedy="Remove it: a new one will be made."
            ) from None
        return token
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def is_open(scope: Scope) -> bool:
    """Whether this call needs no API token."""
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _OPEN_PATHS


class Gate:
    """Decides about one request's or WebSocket's right to the control API.

    ``is_trusted`` says whether the socket of this machine at the other end of a connection (the caller's
    address, then ours) is that of somebody who needs no token.
    """

    def __init__(self, token: str, is_trusted: Callable[[Address, Address], bool]) -> None:
        self._token = token.encode()
        self._is_trusted = is_trusted

    def check(self, scope: Scope) -> None:
        """Raises Unauthorized."""
        raw: RawHeaders = scope["headers"]
        given = headers.first(raw, b"authorization")
        if given is not None:
            kind, _, value = given.partition(b" ")
            # Constant time: how long a wrong token takes tells nothing about the right one.
            if kind.lower() == b"bearer" and hmac.compare_digest(value.strip(), self._token):
                return
            raise Unauthorized(
                "The API token is wrong.",
                remedy="Use the content of the file `token` in the state directory.",
            )
        if not (_is_at_this_machine(scope, raw) and self._is_trusted(scope["client"], scope["server"])):
            raise Unauthorized(
                "The control API needs a token from here.",
                remedy="Send `Authorization: Bearer TOKEN`; TOKEN is in the state directory's file `token`.",
            )


def _is_at_this_machine(scope: Scope, raw: RawHeaders) -> bool:
    client = scope.get("client")
    if not client or not _is_loopback(client[0]):
        return False
    if any(headers.first(raw, name) is not None for name in _FORWARDING):
        return False
    host = headers.first(raw, b"host") or b""
    if not _is_loopback(_host_name(f"//{host.decode('latin-1')}")):
        return False
    origin = headers.first(raw, b"origin")
    return origin is None or urlsplit(origin.decode("latin-1")).netloc == host.decode("latin-1")


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
