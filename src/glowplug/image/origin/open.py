"""From what an import names to the origin that reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from glowplug.image.origin.dockerfile import DockerfileOrigin
from glowplug.image.origin.folder import FolderOrigin
from glowplug.image.origin.oci_layout import LayoutOrigin
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.port import Origin
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.image.origin.scan_cache import ScanCache
from glowplug.image.origin.source_name import (
    DockerfileSource,
    FolderSource,
    LayoutSource,
    RegistrySource,
    TarSource,
    parse_source,
)
from glowplug.image.origin.tar import TarOrigin
from glowplug.types.errors import InvalidInput
from glowplug.types.image import ImportTask, ResolveTask

MAX_DOCKERFILE_BYTES = 1 << 20
_LOOPBACK = re.compile(r"\b(?:127\.0\.0\.1|localhost):[0-9]{1,5}(?=/)")


def open_origin(task: ImportTask, *, scratch: Path, builder: Path, cache: ScanCache) -> Origin:
    """Look at the source of ``task``. Raises InvalidInput or NotFound.

    ``scratch`` is an empty folder for downloads, ``builder`` buildah's storage.
    """
    platform = None if task.platform is None else Platform.parse(task.platform)
    match parse_source(task.source):
        case FolderSource(path):
            return FolderOrigin(path, exclude=task.exclude, cache=cache)
        case TarSource(path):
            return TarOrigin(path)
        case LayoutSource(path, tag):
            return LayoutOrigin(path, tag, scratch=scratch, platform=platform)
        case RegistrySource(reference):
            is_plain_http = True if task.insecure else None
            return RegistryOrigin(reference, scratch=scratch, platform=platform, is_plain_http=is_plain_http)
        case DockerfileSource(dockerfile, context):
            if task.insecure:
                raise InvalidInput(
                    "Registries that a Dockerfile names are spoken to with TLS, unless they are here.",
                    remedy="Leave --insecure out.",
                )
            return DockerfileOrigin(
                dockerfile,
                Path(task.context_dir) if task.context_dir else context,
                storage=builder,
                build_args=task.build_args,
                platform=platform,
                plain_http_registries=_registries_here(dockerfile, task.build_args.values()),
            )


def _registries_here(dockerfile: Path, arguments: Iterable[str]) -> list[str]:
    """The registries on the loopback interface that a build may name: those are spoken to without TLS."""
    text = dockerfile.read_bytes()[:MAX_DOCKERFILE_BYTES].decode(errors="replace")
    return sorted({found for words in (text, *arguments) for found in _LOOPBACK.findall(words)})


def open_registry(task: ResolveTask, scratch: Path) -> RegistryOrigin:
    """The image in a registry that ``task`` names. Raises InvalidInput if it names something else."""
    source = parse_source(task.source)
    if not isinstance(source, RegistrySource):
        raise InvalidInput(f"{task.source} is not in a registry.", remedy="Write docker://REFERENCE.")
    return RegistryOrigin(
        source.reference,
        scratch=scratch,
        platform=None if task.platform is None else Platform.parse(task.platform),
        is_plain_http=True if task.insecure else None,
    )
