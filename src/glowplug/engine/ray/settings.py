"""How Glowplug uses a Ray cluster: written down by ``cluster up``, read by what the supervisor starts."""

from __future__ import annotations

import os
import secrets
from collections.abc import MutableMapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from glowplug.engine.record import write_atomically
from glowplug.types.cluster import Labels
from glowplug.types.errors import NotFound, SystemUnfit
from glowplug.types.paths import DEFAULT_STATE_DIR, IdentityDir, StateDir

NAMESPACE = "glowplug"
DEFAULT_RAY_PORT = 6379
DEFAULT_GATEWAY_PORT = 7443
NODE_WORD = "{node}"
SERVE_VARIABLE = "GLOWPLUG_SERVE"
"""Where the router of a machine listens, if that one is to differ from what `cluster up` said."""
_TOKEN_BYTES = 32
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# Told to end, `ray start --block` waits half a minute for actors to go; ours stay to the end.
_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


class RaySettings(BaseModel):
    """``engine.json`` in the state directory of the control plane.

    ``address`` is Ray's own (its GCS). ``starts_head``: that is a process of ours. ``advertise`` is where the
    machines reach this one. ``only`` are labels of the Ray nodes that are used; without, all are.
    ``node_state`` is the state directory of an agent; ``{node}`` in it becomes the node's name, which several
    Ray nodes of one machine need. ``gateway_port`` 0 takes a free one there. ``serve`` is where the machines'
    routers listen, HOST:PORT or ``off``; None is the default of ``cluster join``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    engine: Literal["ray"] = "ray"
    address: str
    starts_head: bool
    advertise: str | None = None
    only: Labels = {}
    node_state: str = str(DEFAULT_STATE_DIR)
    gateway_port: int = DEFAULT_GATEWAY_PORT
    serve: str | None = None

    def save(self, state: StateDir) -> None:
        """Write it down."""
        write_atomically(state.engine_settings, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, state: StateDir) -> RaySettings:
        """Raises NotFound where there are none, SystemUnfit when they cannot be read."""
        try:
            return cls.model_validate_json(state.engine_settings.read_bytes())
        except FileNotFoundError:
            raise NotFound(
                f"No engine was chosen for {state.root}.",
                remedy="Start it with `glowplug cluster up --engine ray`.",
            ) from None
        except (OSError, ValidationError) as error:
            raise SystemUnfit(
                f"{state.engine_settings} cannot be read.",
                remedy="`glowplug down`, then `glowplug cluster up` writes it anew.",
                cause=str(error)[:300],
            ) from error

    def prepare(self, environment: MutableMapping[str, str], state: StateDir) -> None:
        """Set what Ray's programs look for. Of an existing cluster the user's own environment tells."""
        if self.starts_head:
            environment.pop(_TOKEN, None)
            environment[_MODE] = "token"
            environment[_TOKEN_PATH] = str(ray_token(state))
            environment.setdefault(_DRAIN, "0")
            environment.update(_tls(state.identity.engine))


def ray_token(state: StateDir) -> Path:
    """The file with the token of a Ray cluster that we start, made on first use (mode 0600)."""
    try:
        descriptor = os.open(state.ray_token, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return state.ray_token
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(_TOKEN_BYTES))
    return state.ray_token


def joining_environment(token: str | None, serve: str | None = None) -> dict[str, str]:
    """For ``ray start`` on a machine that joins: with this token, or what the environment says itself.

    Ray hands it on to the actor, which has the agent's router ``serve`` there.
    """
    told = {_DRAIN: os.environ.get(_DRAIN, "0")} | ({SERVE_VARIABLE: serve} if serve else {})
    if token is None:
        return {_MODE: os.environ.get(_MODE, "token"), **told}
    return {_MODE: "token", _TOKEN: token, **told}


def base_environment(files: IdentityDir, token: str, serve: str | None) -> dict[str, str]:
    """As :func:`joining_environment`, for a cluster of ours, with the certificates in ``files``."""
    return joining_environment(token, serve) | _tls(files)


def _tls(files: IdentityDir) -> dict[str, str]:
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(files.node_certificate),
        "RAY_TLS_SERVER_KEY": str(files.node_key),
        "RAY_TLS_CA_CERT": str(files.authority_certificate),
    }
