"""What tests of misbehaving registries share: an image with a long layer, and an origin in a hurry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.image.origin.oci_images import (
    BlobFolder,
    digest_of,
    tar_of,
)
from tests.image.origin.origin_kit import read
from tests.image.origin.registry_server import Request, ScriptedServer

from glowplug.image.origin.docker_credentials import Credentials
from glowplug.image.origin.http_session import Pace
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.reference import Reference
from glowplug.image.origin.registry import RegistryOrigin
from glowplug.image.origin.retries import Patience

HASTY = Pace(connect_s=5, answer_s=0.6, minimum_bytes_per_s=100_000, window_s=0.3)
TWICE = Patience(attempts=2, first_pause_s=0, longest_pause_s=0)
OFTEN = Patience(attempts=6, first_pause_s=0, longest_pause_s=0)
LOGIN = Credentials("keeper", "secret")
CONTENT = bytes(range(256)) * 12_000  # three chunks


def long_image(folder: Path) -> BlobFolder:
    """An image of one layer with a file of 3 MB; the layer is stored uncompressed, so that it is long."""
    blobs = BlobFolder(folder)
    archive = tar_of({"file": CONTENT})
    layer = blobs.add(archive, "application/vnd.oci.image.layer.v1.tar")
    blobs.publish(blobs.add_image([(layer, digest_of(archive))]))
    return blobs


def origin(server: ScriptedServer, tmp_path: Path, **options: Any) -> RegistryOrigin:
    options = {
        "environ": {"HOME": str(tmp_path)},
        "platform": Platform("linux", "amd64"),
        "patience": TWICE,
        **options,
    }
    reference = Reference.parse(f"{server.address}/team/app:app")
    return RegistryOrigin(reference, scratch=tmp_path / "scratch", **options)


def layer_of(blobs: BlobFolder) -> str:
    """The digest of the long layer."""
    longest = max((blobs.folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    return f"sha256:{longest.name}"


def is_for_layer(request: Request, blobs: BlobFolder) -> bool:
    return request.path.endswith(f"/blobs/{layer_of(blobs)}")


def read_file(source: RegistryOrigin) -> bytes:
    tree, store = read(source)
    inode = tree.lookup(b"/file")
    assert inode is not None
    return store.content(inode)
