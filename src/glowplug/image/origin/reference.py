"""Names of images in registries, by Docker's rules: ``alpine`` is ``docker.io/library/alpine:latest``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glowplug.image.origin.digest import Digest
from glowplug.types.errors import InvalidInput

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_REFERENCE_CHARACTERS = 1024
MAX_REPOSITORY_CHARACTERS = 255  # as the distribution specification's reference implementation
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_WORD}(?:/{_WORD})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Reference:
    """One image of one registry. Has a tag, a digest, or both; with both the digest decides."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what people write after ``docker pull``. Raises InvalidInput."""
        if len(text) > MAX_REFERENCE_CHARACTERS:
            raise _malformed(text, "it is too long")
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        registry, path = _split_registry(rest)
        repository, colon, tag = path.partition(":")
        if not _REGISTRY.fullmatch(registry):
            raise _malformed(text, f"{registry[:100]!r} is not the address of a registry")
        if len(repository) > MAX_REPOSITORY_CHARACTERS or not _REPOSITORY.fullmatch(repository):
            raise _malformed(text, f"{repository[:100]!r} is not the name of a repository")
        if colon and not is_tag(tag):
            raise _malformed(text, f"{tag[:100]!r} is not a tag")
        if not colon and digest is None:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag or None, digest)

    @property
    def version(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest is not None else str(self.tag)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def is_tag(text: str) -> bool:
    """Whether ``text`` can be a tag."""
    return _TAG.fullmatch(text) is not None


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    # Docker's rule: what looks like a host name is one, anything else is a user of the default registry.
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, path = first, rest
    else:
        registry, path = DEFAULT_REGISTRY, text
    if registry == f"index.{DEFAULT_REGISTRY}":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return registry, path


def _malformed(text: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{text[:200]!r} does not name an image: {why}.",
        remedy="Write name, name:tag, registry.example.com:5000/team/name:tag or name@sha256:<digest>.",
        reference=text[:200],
    )
