"""An image in a registry, as an origin: found by tag or digest, its layers fetched several at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.blob_transfer import BlobTransfer
from glowplug.image.origin.digest import Digest
from glowplug.image.origin.docker_credentials import Credentials, find_credentials
from glowplug.image.origin.foreign_layer import fetch_foreign
from glowplug.image.origin.http_session import Pace, Session
from glowplug.image.origin.layer_spool import spooled
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.oci import find_image, read_image
from glowplug.image.origin.oci_config import MAX_CONFIG_BYTES
from glowplug.image.origin.oci_manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    Descriptor,
    parse_document,
)
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.port import ByteStream, ContentSink
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry_client import RegistryClient, is_loopback
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import NotFound

_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))


class RegistryOrigin:
    """An :class:`~glowplug.image.origin.port.Origin`: an image in a registry.

    ``is_plain_http`` None: unencrypted for registries on this machine only. Without ``credentials``, what
    ``docker login`` left is used. ``scratch`` takes layers between network and store; nothing is left there.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        scratch: Path,
        platform: Platform | None = None,
        is_plain_http: bool | None = None,
        credentials: Credentials | None = None,
        environ: Mapping[str, str] | None = None,
        pace: Pace | None = None,
        patience: Patience | None = None,
        limits: ArchiveLimits | None = None,
    ) -> None:
        self._reference = reference
        self._scratch = scratch
        self._platform = platform or Platform.here()
        self._is_plain_http = is_loopback(reference.registry) if is_plain_http is None else is_plain_http
        self._credentials = credentials
        self._environ = os.environ if environ is None else environ
        self._pace = pace or Pace()
        self._patience = patience or Patience()
        self._limits = limits

    def describe(self) -> str:
        """See :class:`~glowplug.image.origin.port.Origin`."""
        return str(self._reference)

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """See :class:`~glowplug.image.origin.port.Origin`.

        Raises NotFound, Unauthorized, Unavailable, DeadlineExceeded, InvalidInput, ResourceExhausted.
        """
        with self._blobs() as blobs:
            job.say(f"asking {self._reference.registry} for {self._reference.repository}")
            data, media_type = blobs.top(self._reference, job)
            image = find_image(parse_document(data, media_type), blobs, self._platform, job)
            return read_image(image, blobs, sink, job, self._limits)

    def pin(self, job: Job) -> Reference:
        """The reference with the digest that its tag stands for right now. Raises as ``read``."""
        with self._blobs() as blobs:
            data, media_type = blobs.top(self._reference, job)
        parse_document(data, media_type)
        return replace(self._reference, digest=self._reference.digest or Digest.of(data))

    @contextmanager
    def _blobs(self) -> Iterator[_RegistryBlobs]:
        credentials = self._credentials or find_credentials(self._reference.registry, self._environ)
        client = RegistryClient(self._reference, credentials, is_plain_http=self._is_plain_http)
        with Session(self._environ, self._pace) as session:
            yield _RegistryBlobs(client, session, self._patience, self._scratch)


@dataclass(frozen=True)
class _RegistryBlobs:
    """:class:`~glowplug.image.origin.oci.Blobs` of one repository."""

    client: RegistryClient
    session: Session
    patience: Patience
    scratch: Path

    def top(self, reference: Reference, job: Job) -> tuple[bytes, str]:
        """What the reference names, and its media type."""
        data, media_type = self._document(f"manifests/{reference.version}", MAX_DOCUMENT_BYTES, job)
        if reference.digest is not None:
            reference.digest.verify(data, "the image's manifest")
        return data, media_type

    def manifest(self, descriptor: Descriptor, job: Job) -> bytes:
        """See :class:`~glowplug.image.origin.oci.Blobs`."""
        data, _media_type = self._document(f"manifests/{descriptor.digest}", MAX_DOCUMENT_BYTES, job)
        descriptor.digest.verify(data, "the image's manifest")
        return data

    def config(self, descriptor: Descriptor, job: Job) -> bytes:
        """See :class:`~glowplug.image.origin.oci.Blobs`."""
        data, _media_type = self._document(f"blobs/{descriptor.digest}", MAX_CONFIG_BYTES, job)
        descriptor.digest.verify(data, "the image's configuration")
        return data

    def layers(
        self, descriptors: Sequence[Descriptor], job: Job
    ) -> AbstractContextManager[Iterator[ByteStream]]:
        """See :class:`~glowplug.image.origin.oci.Blobs`."""
        return spooled(descriptors, self._fetch, self.scratch, job)

    def _document(self, path: str, limit_bytes: int, job: Job) -> tuple[bytes, str]:
        patience = self.patience.afresh()
        return self.client.document(path, _ACCEPT, limit_bytes, self.session, patience, job)

    def _fetch(self, blob: Descriptor, target: IO[bytes], job: Job) -> None:
        with self.session.another() as session:
            try:
                transfer = BlobTransfer(blob.digest, blob.size_bytes, target, f"layer {blob.digest}")
                transfer.run(self.client.blob(blob.digest), session, self.patience.afresh(), job)
            except NotFound:
                if not blob.is_foreign or not blob.urls:
                    raise
                fetch_foreign(blob, target, session, self.patience, job)
