"""Manifests as they are written: plain (format 2), or sealed with a key inside an envelope (format 3).

A manifest holds a server's environment, its canaries' answers and hashes of its memory. The envelope says no
more than what must be known without the key: whose it is (its id), which content must be kept for it, and
which key opens it. All three are bound to the seal. ``docs/snapshot-sealing.md`` has the format.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.snapshot.canonical import canonical_json, parse_json
from glowplug.snapshot.manifest import MAX_MANIFEST_BYTES, SNAPSHOT_ID_PATTERN, Digest, Manifest, invalid
from glowplug.snapshot.sealing.cipher import IV_BYTES, TAG_BYTES, Seal, Sealer, WrongSeal
from glowplug.snapshot.sealing.keys import KEY_ID_PATTERN, KeyRing

MAX_STORED_BYTES = MAX_MANIFEST_BYTES * 4 // 3 + 4096
"""Of a manifest in its envelope: base64, and a few fields."""

PURPOSE = "manifest"
_SEALED_FORMAT: Final = 3


class _Envelope(BaseModel):
    """A sealed manifest. ``seal`` is IV and tag, ``sealed`` the ciphertext."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[3]
    id: str = Field(pattern=SNAPSHOT_ID_PATTERN)
    content: Digest
    key: str = Field(pattern=KEY_ID_PATTERN)
    seal: str = Field(pattern=rf"^[0-9a-f]{{{2 * (IV_BYTES + TAG_BYTES)}}}$")
    sealed: str

    @property
    def bound(self) -> bytes:
        """What is readable, and cannot be changed all the same."""
        return _bound(self.id, self.content, self.key)


@dataclass(frozen=True)
class StoredManifest:
    """A manifest and its bytes as they are kept, here and in the region. ``sealed_with`` is its key's id."""

    manifest: Manifest
    raw: bytes
    sealed_with: str | None


@dataclass(frozen=True)
class Manifests:
    """How one node writes and reads them. Without ``keys`` it writes plain ones, and reads no others."""

    keys: KeyRing | None = None

    def encode(self, manifest: Manifest) -> bytes:
        """As it is written: sealed with the first key, if there is one."""
        plain = manifest.encode()
        if self.keys is None:
            return plain
        key = self.keys.first
        bound = _bound(manifest.id, manifest.content, key.id)
        seal, sealed = Sealer(key, PURPOSE).seal_small(plain, bound)
        envelope = _Envelope(
            format=_SEALED_FORMAT,
            id=manifest.id,
            content=manifest.content,
            key=key.id,
            seal=(seal.iv + seal.tag).hex(),
            sealed=base64.b64encode(sealed).decode("ascii"),
        )
        return canonical_json(envelope.model_dump()) + b"\n"

    def decode(self, raw: bytes, snapshot_id: str) -> StoredManifest:
        """Read hostile bytes found where ``snapshot_id`` should be. Raises SnapshotInvalid, KeyMissing."""
        envelope = _envelope(raw, snapshot_id)
        if envelope is None:
            return StoredManifest(Manifest.decode(raw, snapshot_id), raw, None)
        keys = self.keys or KeyRing(())
        key = keys.get(envelope.key, f"Snapshot {snapshot_id}")
        seal = bytes.fromhex(envelope.seal)
        try:
            sealed = base64.b64decode(envelope.sealed, validate=True)
            opened = Seal(seal[:IV_BYTES], seal[IV_BYTES:])
            plain = Sealer(key, PURPOSE).open_small(sealed, opened, envelope.bound)
        except (WrongSeal, binascii.Error) as problem:
            raise invalid(snapshot_id, f"was altered: its seal of key {key.id} does not fit") from problem
        manifest = Manifest.decode(plain, snapshot_id)
        if manifest.content != envelope.content:
            raise invalid(snapshot_id, "names another content than its envelope")
        return StoredManifest(manifest, raw, key.id)


def content_named(raw: bytes, snapshot_id: str) -> str:
    """The digest of the content that must be kept for it, whoever can open it. Raises SnapshotInvalid."""
    envelope = _envelope(raw, snapshot_id)
    return Manifest.decode(raw, snapshot_id).content if envelope is None else envelope.content


def _envelope(raw: bytes, snapshot_id: str) -> _Envelope | None:
    """The envelope; None for anything that does not say it is one."""
    if len(raw) > MAX_STORED_BYTES:
        raise invalid(snapshot_id, f"is larger than {MAX_STORED_BYTES} bytes")
    data = _parsed(raw)
    if not isinstance(data, dict) or data.get("format") != _SEALED_FORMAT:
        return None
    try:
        envelope = _Envelope.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise invalid(snapshot_id, f"was altered: {first['loc']}: {first['msg'][:200]}") from error
    if canonical_json(data) + b"\n" != raw:
        raise invalid(snapshot_id, "was altered: it is not in canonical form")
    if envelope.id != snapshot_id:
        raise invalid(snapshot_id, f"belongs to snapshot {envelope.id}")
    return envelope


def _bound(snapshot_id: str, content: str, key_id: str) -> bytes:
    """The envelope's readable fields, in the one form of them that the seal goes with."""
    return canonical_json({"content": content, "format": _SEALED_FORMAT, "id": snapshot_id, "key": key_id})


def _parsed(raw: bytes) -> Any:
    try:
        return parse_json(raw)
    except ValueError:
        return None  # Manifest.decode says what is wrong with it
