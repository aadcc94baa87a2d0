"""The process that serves one image through FUSE alone.

``python -m glowplug.image.lazy.plain_main STATE DIGEST INDEX TARGET``: says ``mounted`` when it is, goes on
in the background, ends when it is unmounted. ``INDEX`` stays open until then, which is how others see that
the image is in use. When it dies, the mount answers with ENOTCONN and the image's next mount replaces it.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
from pathlib import Path

from glowplug.image.index.erofs_read import read_index
from glowplug.image.lazy.attached import AttachedBlobs
from glowplug.image.lazy.blob_server import BlobServer
from glowplug.image.lazy.fuse_mount import mount_fuse
from glowplug.image.lazy.fuse_session import FuseSession
from glowplug.image.lazy.plain_fuse import FLAGS, PlainFilesystem
from glowplug.image.lazy.plain_mount import READY
from glowplug.image.lazy.plain_nodes import PlainNodes
from glowplug.image.lazy.worker import open_sources
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 2.0
_USAGE = 64


def main(arguments: list[str]) -> int:
    """Serve until unmounted. Returns the exit code."""
    if len(arguments) != 4:
        sys.stderr.write(f"{__doc__}\n")
        return _USAGE
    root, digest, index, target = arguments
    if os.fork() != 0:  # before there are threads
        return 0
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with Path(index).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            _serve(StateDir(Path(root)), digest, image, Path(index), Path(target))
    except (GlowplugError, OSError) as problem:
        _log.error("%s", problem)
        return 1
    return 0


def _serve(state: StateDir, digest: str, image: mmap.mmap, index: Path, target: Path) -> None:
    clock = SystemClock()
    blob = AttachedBlobs(state).attach(digest)
    nodes = PlainNodes.of(read_index(image, blob.table), blob.table)
    sources = open_sources(state, clock)
    server = BlobServer(sources.local, sources.fetcher, clock)
    try:
        descriptor = mount_fuse(index, target)
        session = FuseSession(descriptor, PlainFilesystem(nodes, blob, server).handlers(), flags=FLAGS)
        session.start()
        os.write(sys.stdout.fileno(), READY)
        os.close(sys.stdout.fileno())
        session.wait()
        _log.info("unmounted")
    finally:
        sources.fetcher.close(_CLOSE_TIMEOUT_S)
        sources.local.close()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # threads that wait for the kernel or a disk are not to be waited for
