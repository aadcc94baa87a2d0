"""Real nginx as caches of a zone, in folders that nginx's user may enter; nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import needs
from tests.ports import free_port

from glowplug.chunks.zone_cache import ZoneCache, cache, processes
from glowplug.types.clock import SystemClock

TIMEOUT_S = 20.0
MAX_BYTES = 256 << 20


@contextmanager
def cache_folder() -> Iterator[Path]:
    """A folder for a cache, that is not there yet; unlike pytest's own, nginx's user may enter it."""
    needs.programs("nginx", path=cache.NGINX_PLACES)
    path = Path(tempfile.mkdtemp(prefix="glowplug-zone-"))
    path.chmod(0o755)
    try:
        yield path / "cache-1"
    finally:
        for leftover in path.iterdir():
            processes.end(processes.of_folder(leftover), signal.SIGKILL, TIMEOUT_S, SystemClock().monotonic)
        shutil.rmtree(path, ignore_errors=True)


def started(origin_url: str, folder: Path, port: int | None = None) -> ZoneCache:
    made = ZoneCache(
        origin_url, f"127.0.0.1:{port or free_port()}", folder, MAX_BYTES, min_free_bytes=1 << 20
    )
    made.up()
    return made


@contextmanager
def running_cache(origin_url: str) -> Iterator[ZoneCache]:
    """A cache before ``origin_url``, until the end of the block."""
    with cache_folder() as folder:
        made = started(origin_url, folder)
        yield made
        made.down()


def url_of(zone_cache: ZoneCache) -> str:
    return f"http://{zone_cache.status().listen}"


def kill(zone_cache: ZoneCache) -> None:
    """SIGKILL its master and its workers."""
    for pid in processes.of_folder(zone_cache.folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
