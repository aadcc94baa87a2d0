"""Names of bytes in the OCI world: ``sha256:`` or ``sha512:`` and hex digits, untrusted until hashed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import Buffer

from glowplug.types.errors import InvalidInput

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


class Hasher(Protocol):
    """What :mod:`hashlib` gives."""

    def update(self, data: Buffer, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes taken."""
        ...


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm that this program trusts, and the hash in lower-case hex."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``algorithm:hex``. Raises InvalidInput, also for algorithms other than sha256 and sha512."""
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise InvalidInput(
                f"{text[:150]!r} is not a digest.",
                remedy="A digest is sha256: and 64 hex digits, or sha512: and 128, in lower case.",
            )
        return cls(match[1] or match[3], match[2] or match[4])

    @classmethod
    def of(cls, data: Buffer, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def verify(self, data: Buffer, what: str) -> None:
        """Raise InvalidInput unless ``data`` has this digest."""
        self.compare(Digest.of(data, self.algorithm).hex, what)

    def compare(self, got_hex: str, what: str) -> None:
        """Raise InvalidInput unless ``got_hex``, a hash by this algorithm, is this digest."""
        if got_hex != self.hex:
            raise InvalidInput(
                f"The content of {what} is not what its digest says.",
                remedy="It is damaged or was replaced: push or copy the image again.",
                expected=str(self),
                got=f"{self.algorithm}:{got_hex}",
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
