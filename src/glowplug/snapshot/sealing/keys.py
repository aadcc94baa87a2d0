"""The keys that snapshots are sealed with: one or several, of which the first seals and all open.

They come from a file (``GLOWPLUG_SNAPSHOT_KEYS_FILE``, which only its owner may read) or from the environment
(``GLOWPLUG_SNAPSHOT_KEYS``), never from a command line. Nothing here prints a key, whatever is wrong with it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from glowplug.snapshot.durable import write_durably
from glowplug.types.errors import InvalidInput, KeyMissing

VARIABLE = "GLOWPLUG_SNAPSHOT_KEYS"
FILE_VARIABLE = "GLOWPLUG_SNAPSHOT_KEYS_FILE"
KEY_BYTES = 32
KEY_ID_PATTERN = r"^[0-9a-f]{8}$"

_CONTEXT = "glowplug.dev 2026-11-30 snapshot sealing: "
_HEADING = "# Keys of Glowplug's snapshots: the first seals, all open. Whoever reads this can open them.\n"
_LINE = re.compile(r"gpk1-([0-9a-f]{8})-([0-9a-f]{64})")
_MAX_FILE_BYTES = 64 << 10
_MAX_KEYS = 64


@dataclass(frozen=True)
class SealingKey:
    """256 bits. ``id`` is made of them, tells nothing about them, and names the key to people."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """8 hex digits."""
        return self.subkey("key id")[:4].hex()

    def subkey(self, purpose: str) -> bytes:
        """32 bytes for one purpose only: BLAKE3's key derivation, with the purpose in its context."""
        return blake3(self.secret, derive_key_context=_CONTEXT + purpose).digest()

    def encode(self) -> str:
        """The line of a key file. It *is* the key."""
        return f"gpk1-{self.id}-{self.secret.hex()}"

    @classmethod
    def generate(cls) -> SealingKey:
        """A new one, from the kernel's randomness."""
        return cls(os.urandom(KEY_BYTES))


@dataclass(frozen=True)
class KeyRing:
    """At least one key, no two of one id."""

    keys: tuple[SealingKey, ...] = field(repr=False)

    @property
    def first(self) -> SealingKey:
        """The one that seals."""
        return self.keys[0]

    def get(self, key_id: str, what: str) -> SealingKey:
        """The key called ``key_id``, to open ``what``. Raises KeyMissing."""
        found = next((key for key in self.keys if key.id == key_id), None)
        if found is None:
            raise key_missing(key_id, what)
        return found

    @classmethod
    def parse(cls, text: str, source: str) -> KeyRing:
        """Keys, with white space or commas between; ``#`` begins a comment. Raises InvalidInput."""
        keys: list[SealingKey] = []
        for number, line in enumerate(text.splitlines(), 1):
            for word in line.partition("#")[0].replace(",", " ").split():
                keys.append(_parse_key(word, f"{source}, line {number}"))
        if not keys or len(keys) > _MAX_KEYS:
            raise _unusable(source, f"holds {len(keys)} keys instead of 1 to {_MAX_KEYS}")
        if len({key.id for key in keys}) != len(keys):
            raise _unusable(source, "holds the same key twice")
        return cls(tuple(keys))

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """From a file of at most 64 KiB that only its owner can read. Raises InvalidInput."""
        source = f"The key file {path}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _unusable(source, f"cannot be read: {error.strerror}") from error
        try:
            _require_private(os.fstat(descriptor), source)
            raw = os.pread(descriptor, _MAX_FILE_BYTES + 1, 0)
        finally:
            os.close(descriptor)
        if len(raw) > _MAX_FILE_BYTES:
            raise _unusable(source, f"has more than {_MAX_FILE_BYTES} bytes")
        try:
            return cls.parse(raw.decode("ascii"), source)
        except UnicodeDecodeError:
            raise _unusable(source, "is not text") from None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> KeyRing | None:
        """What either variable says; None if neither is set. Raises InvalidInput."""
        environ = os.environ if environ is None else environ
        text, path = (environ.get(name, "").strip() for name in (VARIABLE, FILE_VARIABLE))
        if text and path:
            raise InvalidInput(f"{VARIABLE} and {FILE_VARIABLE} are both set.", remedy="Unset one of them.")
        if path:
            return cls.read(Path(path))
        return cls.parse(text, VARIABLE) if text else None


def make_key_file(path: Path) -> SealingKey:
    """A new file, mode 0600, with a new key. Raises InvalidInput if ``path`` is there already, OSError."""
    key = SealingKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise InvalidInput(
            f"{path} is there already, and what is sealed with its keys cannot be opened without them.",
            remedy="`glowplug snapshot keygen --rotate` puts a new key before them; or name another file.",
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(_HEADING + key.encode() + "\n")
        file.flush()
        os.fsync(descriptor)
    return key


def rotate_key_file(path: Path) -> SealingKey:
    """Put a new key before those of the file, in one step: it seals from the next start of the agent on.

    Raises InvalidInput for a file that no agent would take, OSError.
    """
    old = KeyRing.read(path)
    key = SealingKey.generate()
    lines = [ring_key.encode() for ring_key in (key, *old.keys)]
    write_durably(path.resolve(), (_HEADING + "\n".join(lines) + "\n").encode("ascii"))
    return key


def forget_variable(environ: MutableMapping[str, str]) -> None:
    """Take keys out of the environment that child processes get: none of them needs any."""
    environ.pop(VARIABLE, None)


def key_missing(key_id: str, what: str) -> KeyMissing:
    """The error for something sealed with a key that is not here."""
    return KeyMissing(
        f"{what} is sealed with the key {key_id}, which this node was not given.",
        remedy=f"Add the key {key_id} to the node's snapshot keys (`glowplug up --snapshot-keys FILE`).",
        key_id=key_id,
    )


def _parse_key(word: str, where: str) -> SealingKey:
    found = _LINE.fullmatch(word)
    if found is None:
        raise _unusable(
            where, f"is not a key (gpk1-, 8 hex digits, -, 64 hex digits): {len(word)} characters"
        )
    key = SealingKey(bytes.fromhex(found.group(2)))
    if key.id != found.group(1):
        raise _unusable(where, f"says it is the key {found.group(1)}, but is another: it was altered")
    return key


def _require_private(about: os.stat_result, source: str) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise _unusable(source, "is not a regular file")
    if about.st_mode & 0o077 or about.st_uid not in (0, os.geteuid()):
        raise InvalidInput(
            f"{source} can be read by others: its mode is {stat.S_IMODE(about.st_mode):04o}, its owner user "
            f"{about.st_uid}.",
            remedy="chmod 600 it (and chown it); whoever has read it can open your snapshots.",
        )


def _unusable(source: str, problem: str) -> InvalidInput:
    return InvalidInput(
        f"{source} {problem}.",
        remedy="`glowplug snapshot keygen FILE` makes one; keep every key that something is sealed with.",
    )
