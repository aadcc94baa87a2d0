"""Join tokens: ``gpj1.<SHA-256 of the authority's certificate>.<secret>``.

The first half lets the machine that joins check whom it talks to, the second lets it prove that it may. The
secret is never sent and never stored: who joins sends the token's id and an HMAC of its request; what control
keeps is the id and the HMAC's key, both hashes of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from glowplug.types.errors import InvalidInput

PREFIX = "gpj1"
MAX_TOKEN_CHARACTERS = 200
_SECRET_BYTES = 32
_TOKEN = re.compile(rf"{PREFIX}\.(?P<authority>[0-9a-f]{{64}})\.(?P<secret>[A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True)
class JoinToken:
    """One token. ``authority`` is the fingerprint of the authority's certificate, in hex."""

    authority: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls, authority: str) -> JoinToken:
        """A token nobody has."""
        return cls(authority, secrets.token_urlsafe(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises InvalidInput, which does not repeat the text."""
        match = _TOKEN.fullmatch(text.strip()) if len(text) <= MAX_TOKEN_CHARACTERS else None
        if match is None:
            raise InvalidInput(
                "This is no join token.",
                remedy=f"It looks like {PREFIX}.HEX.LETTERS; `glowplug cluster token` makes one.",
            )
        return cls(match["authority"], match["secret"])

    def __str__(self) -> str:
        return f"{PREFIX}.{self.authority}.{self.secret}"

    @property
    def id(self) -> str:
        """What it is listed as: tells nothing about the secret."""
        return self._derived(b"id").hex()[:12]

    @property
    def proof_key(self) -> str:
        """The key of proofs, in hex."""
        return self._derived(b"proof").hex()

    def _derived(self, purpose: bytes) -> bytes:
        return hashlib.sha256(b"glowplug join token " + purpose + b"\0" + self.secret.encode()).digest()


def prove(proof_key: str, message: bytes) -> str:
    """The proof that whoever sends ``message`` has the token."""
    return hmac.new(bytes.fromhex(proof_key), message, hashlib.sha256).hexdigest()


def is_proven(proof_key: str, message: bytes, proof: str) -> bool:
    """Whether ``proof`` is that of ``message``; takes equally long for every wrong one."""
    return hmac.compare_digest(prove(proof_key, message).encode(), proof.encode("utf-8", "replace"))
