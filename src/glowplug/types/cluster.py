"""What the machines of a cluster tell each other about membership (``docs/cluster.md``)."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from glowplug.types.replica import Message

MAX_LABELS = 16
_LABEL_NAME = r"^[a-z0-9]([a-z0-9./_-]{0,61}[a-z0-9])?$"
_LABEL_VALUE = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
LabelName = Annotated[str, StringConstraints(pattern=_LABEL_NAME)]
LabelValue = Annotated[str, StringConstraints(pattern=_LABEL_VALUE)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=MAX_LABELS)]
SigningRequest = Annotated[str, StringConstraints(max_length=4096)]
"""A PKCS#10 request as PEM. Of all it holds, only the public key and the signature count."""


class NodeState(StrEnum):
    """What a node may be used for.

    ``ready``: for everything. ``draining``: for what runs there, until it runs elsewhere. ``unreachable``:
    its agent does not answer, or the machine has been silent for a while; nothing new goes there. ``lost``:
    silent for so long that what ran there is started elsewhere.
    """

    READY = "ready"
    DRAINING = "draining"
    UNREACHABLE = "unreachable"
    LOST = "lost"


class ProvenRequest(Message):
    """A machine at ``host`` asks for something. ``proof``: HMAC of everything else under the join token's
    secret, so the token itself never travels. ``glowplug`` is its version.
    """

    token_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    host: str = Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._:-]+$")
    glowplug: str = Field(min_length=1, max_length=64)
    signing_request: SigningRequest
    proof: str = Field(default="", max_length=64)

    def proven(self) -> bytes:
        """The bytes that ``proof`` is of."""
        fields = self.model_dump(mode="json", exclude={"proof"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


class JoinRequest(ProvenRequest):
    """It asks to be a node. ``host`` and ``port`` are where its gateway is."""

    name: str = Field(min_length=1, max_length=48)
    port: int = Field(ge=1, le=65535)
    labels: Labels = {}


class EngineJoinRequest(ProvenRequest):
    """It asks for the way into the cluster of the engine, whose other machines reach it at ``host``."""


class EngineAnswer(Message):
    """The way in: where the engine's cluster is, its token, and a certificate of its own authority (PEM)."""

    engine: str
    address: str
    token: str = Field(repr=False)
    certificate: str
    authority: str


class SealedAnswer(Message):
    """An :class:`EngineAnswer` for who has the join token: nonce and AES-256-GCM, in base64."""

    sealed: str = Field(max_length=65_536)


class EngineBase(Message):
    """``identity/engine/base.json``: the cluster of the engine, and ``host``, what this machine is in it."""

    version: int = 1
    engine: str
    address: str
    host: str
    token: str = Field(repr=False)


class RenewalRequest(Message):
    """A node asks for its next certificate: for the key it joined with, which signs the request."""

    name: str = Field(min_length=1, max_length=48)
    signing_request: SigningRequest


class CertificateAnswer(Message):
    """A certificate for the asker's key, and the authority that issued it; both PEM."""

    certificate: str
    authority: str


class MembershipRecord(Message):
    """``identity/membership.json`` on a node. ``serve`` (HOST:PORT): where its router listens, if any."""

    version: int = 1
    name: str
    control_url: str
    listen_host: str
    listen_port: int
    advertise_host: str
    labels: Labels = {}
    serve: str | None = None


class JoinTokenView(Message):
    """A join token as it may be shown. ``token`` is there once, when it is made. Times are Unix seconds."""

    id: str
    created_at: float
    expires_at: float
    token: str | None = None
