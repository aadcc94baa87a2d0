"""The JSON of an image as OCI and Docker (schema 2) write it: index, manifest, and what they point at.

Nothing here is trusted: every document is limited in size, is exactly one kind of document (one that could
be read as two is refused), and what it points at is checked against digest and size when it is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from glowplug.image.origin.digest import Digest
from glowplug.image.origin.oci_platform import Platform
from glowplug.types.errors import InvalidInput

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
REF_NAME = "org.opencontainers.image.ref.name"

MAX_DOCUMENT_BYTES = 4 << 20  # what registries accept as a manifest
MAX_LAYERS = 1000
MAX_MANIFESTS = 10_000
MAX_BLOB_BYTES = 1 << 42
_T = TypeVar("_T", bound=BaseModel)
_SCHEMA_1 = re.compile(r"application/vnd\.docker\.distribution\.manifest\.v1\+.*")
_CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
# The compression that a type names is not looked at: content tells it by itself.
_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer(?:\.nondistributable)?\.v1\.tar(?:\+(?:gzip|zstd))?"
    r"|docker\.image\.rootfs(?:\.foreign)?\.diff\.tar(?:\.(?:gzip|zstd))?)"
)


class _Document(BaseModel):
    # Unknown fields are what newer versions of the specification add.
    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", alias_generator=to_camel, populate_by_name=True
    )


class _PlatformField(_Document):
    os: str = ""
    architecture: str = ""
    variant: str | None = None


class Descriptor(_Document):
    """A pointer to a blob: what it is, its digest, its size."""

    media_type: str = ""
    digest_text: str = Field(alias="digest", max_length=200)
    size_bytes: int = Field(alias="size", ge=0, le=MAX_BLOB_BYTES)
    urls: list[str] | None = Field(default=None, max_length=100)
    annotations: dict[str, str] | None = None
    platform_field: _PlatformField | None = Field(default=None, alias="platform")

    @property
    def digest(self) -> Digest:
        """The blob's name. Raises InvalidInput."""
        return Digest.parse(self.digest_text)

    @property
    def platform(self) -> Platform | None:
        """What it runs on, if the index says so."""
        field = self.platform_field
        if field is None or not field.os or not field.architecture:
            return None
        return Platform(field.os, field.architecture, field.variant or "")

    @property
    def ref_name(self) -> str:
        """The tag that an OCI layout gives it."""
        return (self.annotations or {}).get(REF_NAME, "")

    @property
    def is_foreign(self) -> bool:
        """Its owner does not want it in registries: it may be fetched from its ``urls``."""
        return ".foreign." in self.media_type or ".nondistributable." in self.media_type


class Index(_Document):
    """Several images under one name, usually one per platform."""

    schema_version: int = 2
    manifests: list[Descriptor] = Field(max_length=MAX_MANIFESTS)


class Manifest(_Document):
    """One image: its configuration and its layers, lowest first."""

    schema_version: int = 2
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=MAX_LAYERS)


class _Kind(_Document):
    schema_version: int = 0
    media_type: str | None = None
    manifests: Any = None
    layers: Any = None
    fs_layers: Any = None


def parse_document(data: bytes, media_type: str = "") -> Index | Manifest:
    """Read an index or a manifest; ``media_type`` is what it came as. Raises InvalidInput."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _refused(f"it is longer than {MAX_DOCUMENT_BYTES} bytes")
    kind = _validate(_Kind, data)
    stated = [text for text in (kind.media_type, media_type) if text]
    if any(map(_SCHEMA_1.fullmatch, stated)) or kind.schema_version == 1 or kind.fs_layers is not None:
        raise InvalidInput(
            "The image is in Docker's format of before 2016 (manifest schema 1), which is not supported.",
            remedy="Pull and push it with a current Docker, or `skopeo copy --format oci` it.",
        )
    if kind.manifests is not None and kind.layers is not None:
        # CVE-2021-41190: what one program reads as an index, another reads as a manifest.
        raise _refused("it is an index and a manifest at once")
    if kind.schema_version != 2:
        raise _refused(f"its schema version is {kind.schema_version}")
    if kind.manifests is not None:
        _agree(kind.media_type, media_type, INDEX_TYPES)
        return _validate(Index, data)
    _agree(kind.media_type, media_type, MANIFEST_TYPES)
    return _checked(_validate(Manifest, data))


def parse_index(data: bytes) -> Index:
    """Read the ``index.json`` of a layout. Raises InvalidInput."""
    document = parse_document(data, OCI_INDEX)
    if not isinstance(document, Index):
        raise _refused("it is not an index")
    return document


def choose(candidates: list[Descriptor], wanted: Platform) -> Descriptor:
    """The one of several images that suits ``wanted`` best. Raises InvalidInput."""
    if len(candidates) == 1 and candidates[0].platform is None:
        return candidates[0]  # whether it suits, its configuration tells
    rated: Mapping[int, Descriptor] = {
        rating: candidate
        for candidate in reversed(candidates)  # of equals the first one wins
        if candidate.platform is not None and (rating := wanted.suitability(candidate.platform)) is not None
    }
    if not rated:
        offered = sorted({str(candidate.platform) for candidate in candidates if candidate.platform})
        listed = ", ".join(offered[:20]) or "none with a platform"
        raise InvalidInput(
            f"The image has no version for {wanted}; it has {listed}.",
            remedy="Choose another image, or name one of its platforms with --platform.",
            offered=offered[:100],
        )
    return rated[max(rated)]


def _checked(manifest: Manifest) -> Manifest:
    if manifest.config.media_type not in _CONFIG_TYPES:
        raise _refused(f"its content is {manifest.config.media_type[:100]!r}, not that of a container image")
    for layer in manifest.layers:
        if not _LAYER.fullmatch(layer.media_type):
            raise _refused(f"it has a layer of the unknown type {layer.media_type[:100]!r}")
    return manifest


def _agree(says: str | None, came_as: str, allowed: tuple[str, ...]) -> None:
    """What it came as may also be something general, ``application/json``."""
    is_telling = came_as in INDEX_TYPES or came_as in MANIFEST_TYPES
    for kind in (says, came_as if is_telling else None):
        if kind and kind not in allowed:
            raise _refused(f"it came as {kind[:100]!r}, and is not that")


def _validate(kind: type[_T], data: bytes) -> _T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise _refused(f"{place or 'it'}: {first['msg'][:200]}") from problem


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        f"This image's manifest cannot be used: {why}.",
        remedy="Check that the name is of a container image; if it is damaged, push it again.",
    )
