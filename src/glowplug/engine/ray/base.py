"""The Ray cluster that we start, as machines get into it: its address, its token, certificates.

All of Ray's own connections are TLS, both sides with a certificate of an authority that is for nothing else.
The first machine has that authority; the others ask its control plane, with a join token.
"""

from __future__ import annotations

import importlib.metadata

from glowplug.engine.join import ask_control, control_url, own_address
from glowplug.engine.ray.head import split_address
from glowplug.engine.ray.settings import RaySettings, ray_token
from glowplug.identity.authority import Authority
from glowplug.identity.engine_join import accept_engine, engine_join_request, write_base
from glowplug.identity.files import replace_file
from glowplug.identity.keys import load_or_create_key, signing_request
from glowplug.identity.tokens import JoinToken
from glowplug.types.clock import Clock
from glowplug.types.cluster import EngineBase, SealedAnswer
from glowplug.types.errors import SystemUnfit
from glowplug.types.paths import StateDir

_ALL_ADDRESSES = "0.0.0.0"


def make_base(state: StateDir, settings: RaySettings, clock: Clock) -> None:
    """On the first machine, before Ray's head is started. Raises SystemUnfit."""
    files = state.identity.engine
    host, _ = split_address(settings.address)
    authority = Authority.open(files, clock)
    try:
        request = signing_request(load_or_create_key(files.node_key), host)
        replace_file(files.node_certificate, authority.issue_to_host(host, request).certificate)
        token = ray_token(state).read_text().strip()
        write_base(files, EngineBase(engine="ray", address=settings.address, host=host, token=token))
    except OSError as error:
        raise SystemUnfit(
            f"{files.root} cannot be written: {error}.", remedy="Check the disk and who may write there."
        ) from error


def join_base(state: StateDir, address: str, token: str, advertise: str | None) -> EngineBase:
    """On another machine: ask the control plane at ``address`` for the way in, and keep it.

    Raises Unauthorized, Conflict, NotFound with the control plane's reasons, Unavailable without one.
    """
    secret, url, files = JoinToken.parse(token), control_url(address), state.identity.engine
    host = advertise or own_address(_ALL_ADDRESSES, url)
    state.create()
    request = engine_join_request(files, secret, host, importlib.metadata.version("glowplug"))
    answer = ask_control(url, "/api/v1/engine/join", request.model_dump(mode="json"), SealedAnswer)
    return accept_engine(files, secret, request, answer)
