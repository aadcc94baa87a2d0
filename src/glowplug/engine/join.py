"""Making this machine a node of a cluster: asked for once, remembered in the state directory.

A machine that has joined is started again with what it remembers; its supervisor keeps an agent and, in front
of it, a gateway, and there is no control plane on it.
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from glowplug.engine.launch import Beside
from glowplug.engine.record import is_supervised
from glowplug.identity.files import replace_file
from glowplug.identity.membership import accept, join_request, read_membership
from glowplug.identity.roles import check_node_name
from glowplug.identity.tokens import JoinToken
from glowplug.types.cluster import CertificateAnswer, MembershipRecord
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, NotFound, Unavailable
from glowplug.types.ids import name_from_identifier
from glowplug.types.paths import StateDir
from glowplug.types.replica import Message

DEFAULT_LISTEN = "0.0.0.0:7443"
DEFAULT_SERVE = "127.0.0.1:8080"
NO_ROUTER = "off"
_TIMEOUT_S = 15.0
_NAME_CHARACTERS = 48
_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True)
class Wanted:
    """How this machine is to be a node. ``advertise`` is the address that the control plane reaches it at,
    ``serve`` where its router listens; without, it has none.
    """

    name: str | None = None
    listen: str = DEFAULT_LISTEN
    advertise: str | None = None
    labels: Mapping[str, str] | None = None
    serve: str | None = None


def join(state: StateDir, address: str, token: str, wanted: Wanted) -> MembershipRecord:
    """Join the cluster of the control plane at ``address``; nothing is started by it.

    Raises Unauthorized, Conflict or InvalidInput with the control plane's reasons, Unavailable if it does not
    answer.
    """
    if is_supervised(state):
        raise Conflict(
            f"Glowplug runs on {state.root}.",
            remedy="Stop it with `glowplug down` first, or use another --state.",
        )
    secret = JoinToken.parse(token)
    url = control_url(address)
    host, port = _host_and_port(wanted.listen)
    name = check_node_name(wanted.name or _own_name())
    serve = router_address(wanted.serve)
    try:
        record = MembershipRecord(
            name=name,
            control_url=url,
            listen_host=host,
            listen_port=port,
            advertise_host=wanted.advertise or own_address(host, url),
            labels=dict(wanted.labels or {}),
            serve=serve,
        )
        request = join_request(state.identity, secret, record, importlib.metadata.version("glowplug"))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidInput(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}.",
            remedy="Labels are NAME=VALUE of letters, digits, and . _ - inside.",
        ) from error
    answer = ask_control(url, "/api/v1/nodes/join", request.model_dump(mode="json"), CertificateAnswer)
    accept(state.identity, secret, record, answer)
    return record


def joined(state: StateDir, serve: str | None = None) -> MembershipRecord:
    """What this machine joined before; with ``serve``, its router listens there from now on.

    Raises NotFound, InvalidInput.
    """
    record = read_membership(state.identity)
    if record is None:
        raise NotFound(
            "This machine has not joined a cluster yet.",
            remedy="Give the control plane's address and a --token (`glowplug cluster token` makes one).",
        )
    if serve is not None:
        record = record.model_copy(update={"serve": router_address(serve)})
        replace_file(state.identity.membership, record.model_dump_json(indent=1))
    return record


def own_node(listen: str, advertise: str | None, name: str | None) -> Beside:
    """The machine of a control plane as a node: its gateway listens at ``listen``. Raises InvalidInput."""
    host, port = _host_and_port(listen)
    if advertise is None and _is_wildcard(host):
        raise InvalidInput(
            f"A gateway at {listen} is reached by others at some address, which is not known.",
            remedy="Say at which: --advertise HOST.",
        )
    reached_at = advertise or host
    at = f"[{reached_at}]:{port}" if ":" in reached_at else f"{reached_at}:{port}"
    return Beside(listen, (check_node_name(name or _own_name()), at))


def control_url(address: str) -> str:
    """``HOST:PORT`` or a URL as a URL. Raises InvalidInput."""
    url = address if "//" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
        _ = parts.port
    except ValueError:
        is_usable = False
    if not is_usable:
        raise InvalidInput(
            f"{address!r} is not the address of a control plane.",
            remedy="Write HOST:PORT, or http://HOST:PORT.",
        )
    return url.rstrip("/")


def router_address(serve: str | None) -> str | None:
    """Where a router listens, as it is remembered: None for none. Raises InvalidInput."""
    if serve is None or serve == NO_ROUTER:
        return None
    _host_and_port(serve)
    return serve


def own_address(host: str, url: str) -> str:
    """The address to listen on, if it is one; else where our packets to the control plane come from.

    Raises Unavailable when there is no way to it.
    """
    if not _is_wildcard(host):
        return host
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unavailable(
            f"There is no way from here to {url}: {error}.", remedy="Check the address and the network."
        ) from error


def ask_control(url: str, path: str, body: object, kind: type[_Answer]) -> _Answer:
    """What a control plane answers to who joins. Raises what it refuses with, Unavailable without one."""
    try:
        answer = httpx.post(url + path, json=body, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(
            f"The control plane at {url} does not answer.",
            remedy="It must listen on an address that this machine reaches: glowplug up --host 0.0.0.0.",
            cause=f"{type(error).__name__}: {error}",
        ) from error
    try:
        if answer.is_error:
            raise GlowplugError.from_dict(json.loads(answer.content))
        return kind.model_validate_json(answer.content)
    except (ValueError, AttributeError) as error:
        raise Unavailable(
            f"What answers at {url} is no control plane of this version.",
            remedy="Check the address, and the versions on both machines.",
            status=answer.status_code,
        ) from error


def _own_name() -> str:
    """Made of the host name."""
    return name_from_identifier(socket.gethostname())[:_NAME_CHARACTERS].strip("-")


def _host_and_port(listen: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\[\]]+):(?P<port>\d{1,5})", listen)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise InvalidInput(
            f"{listen!r} is no address to listen on.", remedy="Write HOST:PORT, such as 0.0.0.0:7443."
        )
    return match["host"].strip("[]"), int(match["port"])


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
