"""The passwords that ``docker login`` left: in Docker's ``config.json``, or with the helper that it names."""

from __future__ import annotations

import base64
import binascii
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.image.origin.reference import DEFAULT_REGISTRY
from glowplug.types.errors import InvalidInput, SystemUnfit, Unauthorized

HELPER_TIMEOUT_S = 30.0
MAX_CONFIG_BYTES = 1 << 20
# What a helper says in place of a user's name when its secret is a refresh token.
TOKEN_USER = "<token>"  # noqa: S105
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_THERE = "credentials not found"
# Docker keeps its own registry's under this, the address of an interface that is long gone.
_DOCKER_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True)
class Credentials:
    """A name and a password, or a refresh token in their place."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = Field(default="", alias="identitytoken")


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore")

    auths: dict[str, _Entry] = {}
    helpers: dict[str, str] = Field(default={}, alias="credHelpers")
    store: str = Field(default="", alias="credsStore")


class _HelperAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    username: str = Field(default="", alias="Username")
    secret: str = Field(default="", alias="Secret")


def find_credentials(registry: str, environ: Mapping[str, str]) -> Credentials | None:
    """What Docker would use for ``registry``, if anything. Raises InvalidInput, SystemUnfit, Unauthorized."""
    config = _read_config(environ)
    for name, helper in config.helpers.items():
        if _is_of(name, registry):
            return _ask_helper(helper, name, environ)
    if config.store:
        found = _ask_helper(config.store, _server(registry), environ)
        if found is not None:
            return found
    for name, entry in config.auths.items():
        if _is_of(name, registry):
            return _from_entry(entry, name)
    return None


def _read_config(environ: Mapping[str, str]) -> _Config:
    folder = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME", "/root"), ".docker"))
    path = Path(folder, "config.json")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return _Config()
    except OSError as problem:
        raise _unusable(path, str(problem.strerror)) from problem
    try:
        return _Config.model_validate_json(data)
    except ValidationError:
        # Its own words would quote the passwords.
        raise _unusable(path, "it is not what Docker writes") from None


def _from_entry(entry: _Entry, name: str) -> Credentials | None:
    if entry.identity_token:
        return Credentials(TOKEN_USER, "", entry.identity_token)
    if not entry.auth:
        return Credentials(entry.username, entry.password) if entry.username else None
    try:
        username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise InvalidInput(
            f"Docker's config.json holds a damaged password for {name[:200]!r}.",
            remedy=f"Run `docker login {name[:200]}` again.",
        )
    return Credentials(username, password.rstrip("\0"))


def _ask_helper(helper: str, server: str, environ: Mapping[str, str]) -> Credentials | None:
    if not _HELPER.fullmatch(helper):
        raise InvalidInput(
            f"Docker's config.json names an impossible helper, {helper[:100]!r}.", remedy="Correct the file."
        )
    program = f"docker-credential-{helper}"
    try:
        ended = subprocess.run(
            [program, "get"],
            input=server,
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(environ),
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise SystemUnfit(
            f"{program}, which keeps the passwords of registries, cannot be run: {type(problem).__name__}.",
            remedy="Install it, or remove it from Docker's config.json.",
            helper=program,
        ) from problem
    if ended.returncode != 0:
        if _NOT_THERE in (ended.stdout + ended.stderr).lower():
            return None
        raise Unauthorized(
            f"{program} could not give a password for {server}.",
            remedy=f"Run `docker login {server}` again.",
            output=ended.stderr[:500],
        )
    try:
        answer = _HelperAnswer.model_validate_json(ended.stdout)
    except ValidationError:
        raise SystemUnfit(
            f"{program} gave no sensible answer.", remedy="Update it.", helper=program
        ) from None
    if answer.username == TOKEN_USER:
        return Credentials(TOKEN_USER, "", answer.secret)
    return Credentials(answer.username, answer.secret)


def _is_of(name: str, registry: str) -> bool:
    host = re.sub(r"^https?://", "", name).partition("/")[0]
    return host == registry or (registry == DEFAULT_REGISTRY and host in _HUB_HOSTS)


def _server(registry: str) -> str:
    return _DOCKER_HUB if registry == DEFAULT_REGISTRY else registry


def _unusable(path: Path, why: str) -> InvalidInput:
    return InvalidInput(
        f"{path} cannot be used: {why}.", remedy="Correct it, or set DOCKER_CONFIG to another folder."
    )
