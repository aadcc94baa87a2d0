"""The contract of stores over every way to what is elsewhere: buckets, HTTP, and real nginx before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.chunks.blobs import Held
from tests.chunks.cloud_servers import AzureServer, GcsServer
from tests.chunks.contract import Holding, StoreContract
from tests.chunks.servers import S3Server, http_server, serving
from tests.chunks.zone_caches import running_cache, url_of

from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.objects import Objects, WriteObjects
from glowplug.chunks.packed_store import PackedStore
from glowplug.chunks.region import Region
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.chunks.zone import ZoneObjects

PACK_BYTES = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A region that is written to, and how its objects are read."""

    written: WriteObjects
    read: Objects


@contextmanager
def over_bucket(server: S3Server | GcsServer | AzureServer) -> Iterator[Remote]:
    try:
        objects = server.objects(server.make_bucket("contract"))
        yield Remote(objects, objects)
        objects.close()
    finally:
        server.kill()


@contextmanager
def over_http(folder: Path) -> Iterator[Remote]:
    written = ObstoreObjects(str(folder))
    with http_server(serving(folder)) as server:
        read = HttpObjects(server.url)
        yield Remote(written, read)
        read.close()
    written.close()


@contextmanager
def over_nginx(folder: Path) -> Iterator[Remote]:
    """There is no way past the cache."""
    written = ObstoreObjects(str(folder))
    with http_server(serving(folder)) as server, running_cache(server.url) as cache:
        read = ZoneObjects([url_of(cache)])
        yield Remote(written, read)
        read.close()
    written.close()


WAYS: dict[str, Callable[[Path], AbstractContextManager[Remote]]] = {
    "s3": lambda _folder: over_bucket(S3Server()),
    "gcs": lambda _folder: over_bucket(GcsServer()),
    "azure": lambda _folder: over_bucket(AzureServer()),
    "http": over_http,
    "nginx": over_nginx,
}


@pytest.fixture(
    scope="module",
    params=[
        "s3",
        "http",
        "nginx",
        pytest.param("gcs", marks=pytest.mark.nightly),
        pytest.param("azure", marks=pytest.mark.nightly),
    ],
)
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with WAYS[request.param](tmp_path_factory.mktemp("region")) as remote:
        yield remote


class TestRemoteStore(StoreContract):
    @pytest.fixture
    def holding(self, remote: Remote, tmp_path: Path) -> Holding:
        def hold(bodies: Sequence[bytes]) -> PackedStore:
            source = Held(bodies)
            region = Region(remote.written, tmp_path / "kept", pack_bytes=PACK_BYTES)
            with region.pushing() as lease:
                placement = region.push_chunks(source.table, source, lease).placement
            return PackedStore(remote.read, source.table, placement)

        return hold
