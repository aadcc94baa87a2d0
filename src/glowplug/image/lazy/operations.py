"""What the control socket can ask of the worker: attach, prefetch, traces, numbers.

Checks everything it is sent; what it answers is what :class:`~glowplug.image.lazy.client.DaemonClient` reads.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glowplug.chunks.fetch import PrefetchHandle
from glowplug.chunks.zone import ZoneObjects
from glowplug.image.lazy import trace
from glowplug.image.lazy.attached import AttachedBlobs
from glowplug.image.lazy.blob import DIGEST, Blob
from glowplug.image.lazy.blob_server import ChunkFetcher
from glowplug.image.lazy.control import Answer, Operation
from glowplug.image.lazy.daemon_metrics import metrics_text
from glowplug.image.lazy.fuse_pump import FusePump
from glowplug.image.lazy.orders import pack_order, unpack_order
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, NotFound

_log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 20.0
_CATCH_UP_S = 1.0
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024

Fields = Mapping[str, Any]


class Operations:
    """The operations, bound to what they work on."""

    def __init__(
        self,
        blobs: AttachedBlobs,
        fetcher: ChunkFetcher,
        clock: Clock,
        *,
        descriptors: Sequence[int],
        restarts: int,
        zone: ZoneObjects | None = None,
        pump: FusePump | None = None,
    ) -> None:
        self._blobs = blobs
        self._fetcher = fetcher
        self._clock = clock
        self._descriptors = descriptors
        self._restarts = restarts
        self._zone = zone
        self._pump = pump
        self._started_s = clock.monotonic()
        self._lock = threading.Lock()
        self._prefetches: dict[str, PrefetchHandle] = {}

    def by_name(self) -> dict[str, Operation]:
        """For the control server."""
        return {
            "ping": self._ping,
            "take_fd": self._take_descriptors,
            "attach": self._attach,
            "detach": self._detach,
            "refresh": self._refresh,
            "prefetch": self._prefetch,
            "prefetch_status": self._prefetch_status,
            "prefetch_cancel": self._prefetch_cancel,
            "give_up": self._give_up,
            "trace_get": self._trace_get,
            "trace_reset": self._trace_reset,
            "stats": self._stats,
            "metrics": self._metrics,
        }

    def _ping(self, _fields: Fields) -> Answer:
        return Answer({"pid": os.getpid(), "restarts": self._restarts, "uptime_s": self._uptime_s()})

    def _take_descriptors(self, _fields: Fields) -> Answer:
        return Answer({"pid": os.getpid(), "restarts": self._restarts}, self._descriptors)

    def _attach(self, fields: Fields) -> Answer:
        blob = self._blob(fields)
        placement = blob.remote.placement
        return Answer(
            {"chunks": len(blob.table), "blob_bytes": blob.size_bytes, "is_placed": placement is not None}
        )

    def _detach(self, fields: Fields) -> Answer:
        digest = _digest(fields)
        with self._lock:
            prefetch = self._prefetches.pop(digest, None)
        if prefetch is not None:
            prefetch.cancel()
        return Answer({"was_attached": self._blobs.detach(digest)})

    def _refresh(self, fields: Fields) -> Answer:
        blob = self._blobs.find(_digest(fields))
        if blob is not None:
            blob.refresh()
        return Answer({"is_attached": blob is not None})

    def _prefetch(self, fields: Fields) -> Answer:
        blob = self._blob(fields)
        is_guess = fields.get("is_guess") is True
        handle = self._fetcher.prefetch(blob.remote, _order(fields, blob), is_guess=is_guess)
        with self._lock:
            before = self._prefetches.get(blob.digest)
            self._prefetches[blob.digest] = handle
        if before is not None:
            before.cancel()
        return Answer(_progress(handle))

    def _prefetch_status(self, fields: Fields) -> Answer:
        handle = self._handle(fields)
        wait_s = fields.get("wait_s", 0)
        if not isinstance(wait_s, int | float) or not 0 <= wait_s <= _LONGEST_WAIT_S:
            raise InvalidInput(
                f"wait_s must be 0 to {_LONGEST_WAIT_S:g}.", remedy="Ask again and again instead."
            )
        handle.wait(wait_s)
        return Answer(_progress(handle))

    def _prefetch_cancel(self, fields: Fields) -> Answer:
        handle = self._handle(fields)
        handle.cancel()
        return Answer(_progress(handle))

    def _give_up(self, fields: Fields) -> Answer:
        blob = self._blobs.find(_digest(fields))
        if blob is not None:
            self._fetcher.give_up(blob.remote)
        return Answer({"is_attached": blob is not None})

    def _trace_get(self, fields: Fields) -> Answer:
        self._catch_up()
        return Answer({"order": pack_order(self._blob(fields).trace())})

    def _trace_reset(self, fields: Fields) -> Answer:
        self._catch_up()
        self._blob(fields).reset_trace()
        return Answer({})

    def _catch_up(self) -> None:
        """Have all that was read so far noted."""
        if self._pump is not None and not self._pump.wait_until_followed(_CATCH_UP_S):
            _log.warning("reads are noted late: a trace may lack the last of them")

    def _stats(self, _fields: Fields) -> Answer:
        return Answer(self.stats())

    def _metrics(self, _fields: Fields) -> Answer:
        return Answer({"text": metrics_text(self.stats())})

    def stats(self) -> dict[str, Any]:
        """All numbers, as JSON."""
        self._catch_up()
        return {
            "pid": os.getpid(),
            "restarts": self._restarts,
            "uptime_s": self._uptime_s(),
            "rss_bytes": _rss_bytes(),
            "fetch": asdict(self._fetcher.stats()),
            "zone": self._zone_stats(),
            "blobs": {blob.digest: _blob_stats(blob) for blob in self._blobs.all()},
        }

    def _zone_stats(self) -> dict[str, int]:
        if self._zone is None:
            return {}
        return {**asdict(self._zone.counters), "skipped_servers": len(self._zone.skipped_servers)}

    def _uptime_s(self) -> float:
        return round(self._clock.monotonic() - self._started_s, 3)

    def _blob(self, fields: Fields) -> Blob:
        return self._blobs.attach(_digest(fields))

    def _handle(self, fields: Fields) -> PrefetchHandle:
        digest = _digest(fields)
        with self._lock:
            handle = self._prefetches.get(digest)
        if handle is None:
            raise NotFound(
                f"Nothing of image {digest[:16]} was prefetched.", remedy="Start a prefetch first."
            )
        return handle


def _order(fields: Fields, blob: Blob) -> Sequence[int]:
    """The order of a prefetch: given, or by the key of a trace in the image's folder, or simply all of it."""
    if "order" in fields:
        return unpack_order(fields["order"])
    key = fields.get("trace")
    if key is None:
        return range(len(blob.table))
    found = trace.load(blob.folder, key, blob.table) if isinstance(key, str) else None
    if found is None:
        raise NotFound(
            f"Image {blob.digest[:16]} has no usable access trace {str(key)[:64]}.",
            remedy="The first run of a command records one.",
            digest=blob.digest,
        )
    return found.order


def _digest(fields: Fields) -> str:
    digest = fields.get("digest")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise InvalidInput(
            "An image's digest is 64 hexadecimal digits.", remedy="`glowplug image ls` shows them."
        )
    return digest


def _progress(handle: PrefetchHandle) -> dict[str, Any]:
    done_bytes, total_bytes = handle.progress()
    error = handle.error
    return {
        "done_bytes": done_bytes,
        "total_bytes": total_bytes,
        "failed_chunks": handle.failed_chunks,
        "is_over": handle.is_over,
        "error": None if error is None else error.to_dict(),
    }


def _blob_stats(blob: Blob) -> dict[str, Any]:
    return {
        **asdict(blob.counts()),
        "chunks": len(blob.table),
        "blob_bytes": blob.size_bytes,
        "tiers": asdict(blob.remote.counters.read())["tiers"],
    }


def _rss_bytes() -> int:
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * _PAGE_KIB * 1024
