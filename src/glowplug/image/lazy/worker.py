"""The process that serves the blobs. It may die at any moment: the holder starts another, which goes on.

``python -m glowplug.image.lazy.worker``, started by the holder with the descriptors of the FUSE connection
and of the control socket. :func:`open_sources` is the one place where it is decided what reads come from.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from glowplug.chunks.fetch import Fetcher
from glowplug.chunks.objects import Objects
from glowplug.chunks.remote_settings import RemoteSettings
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.zone import ZoneObjects
from glowplug.image.lazy.attached import AttachedBlobs
from glowplug.image.lazy.blob_filesystem import BlobFilesystem
from glowplug.image.lazy.blob_server import BlobServer, ChunkFetcher
from glowplug.image.lazy.control import ControlServer
from glowplug.image.lazy.daemon_state import DaemonPaths, take_lock
from glowplug.image.lazy.fuse_pump import FusePump
from glowplug.image.lazy.fuse_session import FuseSession
from glowplug.image.lazy.local_read import LocalChunks
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.image.lazy.operations import Operations
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

_log = logging.getLogger(__name__)

_THREADS = 4
_PUMP_THREADS = 8  # reads of packs in flight: each may wait for the disk
_SWITCH_INTERVAL_S = 0.0005  # how long a request of the kernel may wait for a thread that plans a fetch
_READ_AHEAD_KIB = 4096  # of a blob's file, where EROFS reads it through the page cache
_LOCK_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0  # the holder kills after 5 s
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # <malloc.h>


class LocalStore(LocalChunks, Protocol):
    """The SSD tier as the worker owns it."""

    def pack_path(self, pack: int) -> Path:
        """The file of a pack."""
        ...

    def close(self) -> None:
        """Make everything durable."""
        ...


@dataclass(frozen=True)
class Sources:
    """What reads come from."""

    local: LocalStore
    fetcher: ChunkFetcher
    zone: ZoneObjects | None = None


def open_sources(state: StateDir, clock: Clock) -> Sources:
    """The SSD tier of this state directory and, behind it, what the environment names as zone and region.

    Settings that are wrong leave what is on this machine readable.
    """
    tiers: Sequence[Objects] = ()
    budget_bytes: int | None = None
    try:
        settings = RemoteSettings.from_environment()
        budget_bytes = settings.ssd_budget_bytes
        tiers = settings.tiers()
    except GlowplugError as problem:
        _log.error("nothing can be fetched: %s", problem)
    store = SsdStore(state.chunks, budget_bytes=budget_bytes, clock=clock)
    zone = next((tier for tier in tiers if isinstance(tier, ZoneObjects)), None)
    return Sources(store, Fetcher(store, tiers, clock=clock), zone)


def main(open_from: Callable[[StateDir, Clock], Sources] = open_sources) -> NoReturn:
    """Serve until the filesystem is gone or SIGTERM comes."""
    arguments = _parser().parse_args()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s worker {os.getpid()}: %(levelname)s %(name)s: %(message)s",
    )
    state = StateDir(arguments.state)
    paths = DaemonPaths(state)
    if not _hold_lock(paths.worker_lock):
        _log.error("another worker runs already")
        os._exit(1)
    _keep_heap_small()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    sources = open_from(state, SystemClock())
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    code = 0
    try:
        _serve(arguments, state, paths, sources)
    except SystemExit:
        _log.info("stopping")
    except Exception:  # noqa: BLE001 - the log is where it can be seen, and another worker follows
        _log.exception("cannot go on")
        code = 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sources.fetcher.close(_CLOSE_TIMEOUT_S)
        sources.local.close()
        logging.shutdown()
        os._exit(code)  # threads that wait for the kernel or a disk are not to be waited for


def _serve(arguments: argparse.Namespace, state: StateDir, paths: DaemonPaths, sources: Sources) -> None:
    clock = SystemClock()
    pump = FusePump(arguments.fuse_fd, sources.local.pack_path(0).parent, _PUMP_THREADS)
    blobs = AttachedBlobs(state, pump)
    filesystem = BlobFilesystem(blobs, BlobServer(sources.local, sources.fetcher, clock))
    session = FuseSession(
        arguments.fuse_fd,
        filesystem.handlers(),
        threads=arguments.threads,
        on_ready=lambda: _read_ahead(paths.blobs),
        receive=pump.receive,
    )
    operations = Operations(
        blobs,
        sources.fetcher,
        clock,
        descriptors=(arguments.fuse_fd, arguments.control_fd),
        restarts=arguments.restarts,
        zone=sources.zone,
        pump=pump,
    )
    session.start()
    threading.Thread(target=filesystem.follow, args=(pump.notices(),), name="notices", daemon=True).start()
    if arguments.resend:
        session.ask_again()
    ControlServer(arguments.control_fd, operations.by_name(), clock).start()
    _log.info("serving (started %d times before)", arguments.restarts)
    session.wait()
    _log.info("the filesystem is gone")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glowplug.image.lazy.worker")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--fuse-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--resend", action="store_true", help="an earlier worker may owe answers")
    parser.add_argument("--threads", type=int, default=_THREADS)
    return parser


def _end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit


def _hold_lock(path: Path) -> bool:
    """Have the worker's lock for as long as we live. One that is dying may have it for a moment still."""
    deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
    while take_lock(path) is None:
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.02)
    return True


def _keep_heap_small() -> None:
    """Chunks come and go on many threads: give large blocks back at once, and share the heaps."""
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_ARENA_MAX, 2), (_MMAP_THRESHOLD, 128 << 10), (_TRIM_THRESHOLD, 1 << 20)):
        mallopt(parameter, value)


def _read_ahead(mount: Path) -> None:
    """Raise the read-ahead of the filesystem that was just made, which the kernel sets to 128 KiB."""
    entry = mounted_at(mount.resolve())
    if entry is None:
        return
    try:
        Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").write_text(str(_READ_AHEAD_KIB))
    except OSError as problem:
        _log.info("read-ahead stays as it is: %s", problem)


if __name__ == "__main__":
    main()
