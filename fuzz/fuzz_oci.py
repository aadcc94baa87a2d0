"""Fuzz what registries, layouts and manifests say. Run as :mod:`fuzz.engine` says, and inputs are as there.

Whatever comes in is refused with InvalidInput, or what is made of it is possible; anything else is a finding.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from urllib.parse import urlsplit

from fuzz.engine import Parser, instrumented, is_taken, require, run, sound

with instrumented(__name__, "glowplug.image.origin"):
    from tests.image.origin.origin_kit import OpenStore

    from glowplug.image.job import Job
    from glowplug.image.origin.digest import Digest
    from glowplug.image.origin.http_answers import redirected
    from glowplug.image.origin.http_session import proxy_for
    from glowplug.image.origin.layers import Layer, apply_layers
    from glowplug.image.origin.limits import ArchiveLimits
    from glowplug.image.origin.oci_config import OciConfig
    from glowplug.image.origin.oci_manifest import Descriptor, Index, choose, parse_document
    from glowplug.image.origin.oci_platform import Platform
    from glowplug.image.origin.reference import Reference
    from glowplug.image.origin.retries import read_retry_after
    from glowplug.image.origin.sink import ChunkSink
    from glowplug.image.origin.www_authenticate import parse_challenges
    from glowplug.types.clock import ManualClock
    from glowplug.types.errors import InvalidInput

ZERO = "sha256:" + "0" * 64
LIMITS = ArchiveLimits(unpacked_bytes=1 << 20, logical_bytes=1 << 30, entries=1000, metadata_bytes=1 << 20)


def fuzz(data: bytes) -> bool:
    """One input."""
    return is_taken(data, _PARSERS, (InvalidInput,))


def _document(data: bytes) -> None:
    document = parse_document(data)
    if isinstance(document, Index):
        require(choose(document.manifests, Platform("linux", "amd64")).size_bytes >= 0)
    else:
        require(all(layer.size_bytes >= 0 for layer in document.layers))


def _config(data: bytes) -> None:
    config = OciConfig.parse(data)
    require(config.diff_ids is not None)
    require(config.image_config().workdir.startswith("/"))


def _reference(data: bytes) -> None:
    reference = Reference.parse(data.decode(errors="replace"))
    require(Reference.parse(str(reference)) == reference)


def _headers(data: bytes) -> None:
    text = data.decode("latin-1")
    parse_challenges([text])
    require(read_retry_after(text, ManualClock()) >= 0)


def _redirect(data: bytes) -> None:
    target = redirected("https://registry.example/v2/", data.decode("latin-1"))
    require(urlsplit(target).scheme == "https")
    proxy_for(target, {"https_proxy": "p", "no_proxy": data.decode("latin-1")})


def _layers(data: bytes) -> None:
    """Two layers, the second of which meets what the first left."""
    job = Job(lambda _text, _fraction: None, ManualClock(), time.monotonic() + 1e9)
    archives = (_ARCHIVE, data)
    layers = []
    for archive in archives:
        digest = Digest.of(archive)
        blob = Descriptor(media_type="", digest_text=str(digest), size_bytes=len(archive))
        layers.append(Layer(blob, digest))
    with ChunkSink(OpenStore(), workers=1) as sink:
        apply_layers(layers, map(io.BytesIO, archives), sink, job, LIMITS).check()


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/b", tarfile.REGTYPE), ("a/.wh.c", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    return buffer.getvalue()


_ARCHIVE = _archive()
_BLOB = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": ZERO, "size": 1}
_CONFIG_BLOB = {**_BLOB, "mediaType": "application/vnd.oci.image.config.v1+json"}
_MANIFEST = {"schemaVersion": 2, "config": _CONFIG_BLOB, "layers": [_BLOB]}
_INDEX = {"schemaVersion": 2, "manifests": [{**_BLOB, "platform": {"os": "linux", "architecture": "amd64"}}]}
_SETTINGS = {"Env": ["A=b"], "Cmd": ["x"], "WorkingDir": "/", "Labels": {"a": "b"}}
_CONFIG = {"os": "linux", "architecture": "amd64", "config": _SETTINGS, "rootfs": {"diff_ids": [ZERO]}}
_PARSERS = {
    b"d": Parser(_document, json.dumps(_MANIFEST).encode()),
    b"i": Parser(_document, json.dumps(_INDEX).encode()),
    b"c": Parser(_config, json.dumps(_CONFIG).encode()),
    b"r": Parser(_reference, f"registry.example:5000/team/app:1@{ZERO}".encode()),
    b"h": Parser(_headers, b'Bearer realm="https://a/b",service="s", Basic realm=x'),
    b"u": Parser(_redirect, b"https://other.example/blobs/x?y=z"),
    b"l": Parser(_layers, _ARCHIVE),
}
SOUND = sound(_PARSERS)


if __name__ == "__main__":
    run(fuzz)
