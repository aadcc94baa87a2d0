"""From a name to an image, wherever its blobs lie: index, manifest, configuration, layers.

Layouts and registries differ in how a blob is fetched; this is what they have in common. Every document is
fetched by digest and checked, so that whoever keeps the blobs can refuse to serve but cannot deceive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.layers import Layer, apply_layers
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.oci_config import MAX_CONFIG_BYTES, OciConfig
from glowplug.image.origin.oci_manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    Index,
    Manifest,
    choose,
    parse_document,
)
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.port import ByteStream, ContentSink
from glowplug.types.errors import InvalidInput

MAX_INDEX_DEPTH = 4  # an index may name another; two levels are seen in practice


class Blobs(Protocol):
    """Where an image's blobs lie."""

    def manifest(self, descriptor: Descriptor, job: Job) -> bytes:
        """An index or a manifest, checked against its digest; at most MAX_DOCUMENT_BYTES."""
        ...

    def config(self, descriptor: Descriptor, job: Job) -> bytes:
        """A configuration, checked against its digest; at most MAX_CONFIG_BYTES."""
        ...

    def layers(
        self, descriptors: Sequence[Descriptor], job: Job
    ) -> AbstractContextManager[Iterator[ByteStream]]:
        """The layers' blobs, each to be read before the next is asked for. Need not be checked."""
        ...


@dataclass(frozen=True)
class OciImage:
    """One image for one platform, its documents read and found consistent."""

    config: OciConfig
    layers: tuple[Layer, ...]


def find_image(top: Index | Manifest, blobs: Blobs, wanted: Platform, job: Job) -> OciImage:
    """The image for ``wanted`` that ``top`` is or leads to. Raises InvalidInput if there is none."""
    manifest = _descend(top, lambda descriptor: blobs.manifest(descriptor, job), wanted)
    check_size(manifest.config, MAX_CONFIG_BYTES, "the image's configuration")
    config = OciConfig.parse(blobs.config(manifest.config, job))
    config.check_platform(wanted)
    diff_ids = config.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise InvalidInput(
            f"The image has {len(manifest.layers)} layers, and digests of {len(diff_ids)}.",
            remedy="It is damaged, or not a container image: build and push it again.",
        )
    return OciImage(config, tuple(map(Layer, manifest.layers, diff_ids)))


def read_image(
    image: OciImage, blobs: Blobs, sink: ContentSink, job: Job, limits: ArchiveLimits | None = None
) -> tuple[Tree, ImageConfig]:
    """Its tree, the content gone to ``sink``, and its settings."""
    config = image.config.image_config()
    with blobs.layers([layer.blob for layer in image.layers], job) as streams:
        return apply_layers(image.layers, streams, sink, job, limits), config


def check_size(descriptor: Descriptor, limit_bytes: int, what: str) -> None:
    """Raise InvalidInput if a blob that is read into memory says that it is too long for that."""
    if descriptor.size_bytes > limit_bytes:
        raise InvalidInput(
            f"The size of {what} is {descriptor.size_bytes} bytes; at most {limit_bytes} are read.",
            remedy="Check that the name is of a container image.",
        )


def _descend(document: Index | Manifest, fetch: Callable[[Descriptor], bytes], wanted: Platform) -> Manifest:
    for _level in range(MAX_INDEX_DEPTH):
        if isinstance(document, Manifest):
            return document
        chosen = choose(document.manifests, wanted)
        check_size(chosen, MAX_DOCUMENT_BYTES, "the image's manifest")
        document = parse_document(fetch(chosen), chosen.media_type)
    if isinstance(document, Manifest):
        return document
    raise InvalidInput(
        f"The image's index leads to an index, more than {MAX_INDEX_DEPTH} deep.",
        remedy="Check that the name is of a container image; if it is, push it again.",
    )
