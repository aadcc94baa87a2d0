"""Sealing bytes so that equal bytes are sealed equally, under one key, and no nonce is ever used twice.

A synthetic IV as in RFC 5297 and Rogaway and Shrimpton's "Deterministic Authenticated-Encryption" (2006),
with AES-256-GCM as the cipher: the IV is a keyed BLAKE3 of all that is sealed, and each IV has an AES key of
its own, so the 96-bit nonce of GCM can be constant. Why, and how far: ``docs/snapshot-sealing.md``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3
from typing_extensions import Buffer

from glowplug.snapshot.sealing.keys import SealingKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

IV_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)


class WrongSeal(Exception):
    """These are not the bytes that were sealed, or this is not the key."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What opens a ciphertext, beside the key. It is as public as the ciphertext."""

    iv: bytes
    tag: bytes


class Sealer:
    """Seals and opens for one purpose; what was sealed for another cannot be opened. Safe in several threads.

    ``bound`` is not encrypted, but has to be the same when it is opened. A message has at most 2 GiB.
    """

    def __init__(self, key: SealingKey, purpose: str) -> None:
        self._iv_key = key.subkey(f"{purpose}, iv")
        self._cipher_key = key.subkey(f"{purpose}, cipher")

    def seal(self, plain: Buffer, sealed: bytearray, bound: bytes = b"") -> Seal:
        """Write the ciphertext to ``sealed``, which has room for TAG_BYTES more than ``plain`` is long."""
        view = memoryview(plain)
        hasher = blake3(struct.pack("<Q", len(bound)) + bound, key=self._iv_key)
        iv = hasher.update(view).digest()
        room = memoryview(sealed)[: view.nbytes + TAG_BYTES]
        self._cipher(iv).encrypt_into(_NONCE, view, _bound(iv, view.nbytes, bound), room)
        return Seal(iv, bytes(room[view.nbytes :]))

    def open(
        self, sealed: bytearray, size_bytes: int, seal: Seal, plain: bytearray, bound: bytes = b""
    ) -> None:
        """The first ``size_bytes`` of ``sealed``, opened into ``plain``. Raises WrongSeal.

        ``sealed`` has room for TAG_BYTES more, which are written.
        """
        sealed[size_bytes : size_bytes + TAG_BYTES] = seal.tag
        from cryptography.exceptions import InvalidTag

        try:
            self._cipher(seal.iv).decrypt_into(
                _NONCE,
                memoryview(sealed)[: size_bytes + TAG_BYTES],
                _bound(seal.iv, size_bytes, bound),
                memoryview(plain)[:size_bytes],
            )
        except InvalidTag:
            raise WrongSeal("altered, or sealed with another key") from None

    def seal_small(self, plain: bytes, bound: bytes = b"") -> tuple[Seal, bytes]:
        """The seal and the ciphertext of something small."""
        sealed = bytearray(len(plain) + TAG_BYTES)
        seal = self.seal(plain, sealed, bound)
        return seal, bytes(sealed[: len(plain)])

    def open_small(self, sealed: bytes, seal: Seal, bound: bytes = b"") -> bytes:
        """What :meth:`seal_small` sealed. Raises WrongSeal."""
        plain = bytearray(len(sealed))
        self.open(bytearray(sealed) + bytes(TAG_BYTES), len(sealed), seal, plain, bound)
        return bytes(plain)

    def _cipher(self, iv: bytes) -> AESGCM:
        # Imported here: OpenSSL takes 7 MB, which an agent without keys does not pay.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(blake3(iv, key=self._cipher_key).digest())


def _bound(iv: bytes, size_bytes: int, bound: bytes) -> bytes:
    """The additional data of GCM: name and length of what is sealed, and what the caller binds to it."""
    return iv + struct.pack("<Q", size_bytes) + bound
