"""Talking to the blob daemon, and having one: what mounts, traces and prefetch go through.

A client holds no connection: each call makes one, and has a deadline. While a worker is being replaced its
calls wait, as reads do.
"""

from __future__ import annotations

import json
import socket
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from glowplug.image.lazy.control import CONTROL_VERSION, LineReader, parse_line
from glowplug.image.lazy.orders import pack_order, unpack_order
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.content import Fetching
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, Unavailable

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Pong:
    """The daemon answers."""

    pid: int  # of the worker
    restarts: int
    uptime_s: float


@dataclass(frozen=True)
class AttachedBlob:
    """A blob that can be read. ``is_placed``: also what is not on this machine can be fetched."""

    chunks: int
    blob_bytes: int
    is_placed: bool


@dataclass(frozen=True)
class PrefetchProgress:
    """How far a prefetch is; ``error`` is why it was given up."""

    done_bytes: int
    total_bytes: int
    failed_chunks: int
    is_over: bool
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class TierShare:
    """What one tier gave for a blob, or for all."""

    requests: int = 0
    bytes: int = 0
    chunks: int = 0
    invalid: int = 0
    errors: int = 0
    fallbacks: int = 0


@dataclass(frozen=True)
class BlobStats:
    """Reads of one blob since it was attached. Chunks count at their first use."""

    chunks: int
    blob_bytes: int
    reads: int
    read_bytes: int
    ssd_bytes: int  # of these, from packs on this machine
    waited_for_disk: int
    waited_for_fetch: int
    ssd_chunks: int
    fetched_chunks: int
    corrupt_chunks: int
    errors: int
    tiers: dict[str, TierShare]


@dataclass(frozen=True)
class DaemonStats:
    """The worker's numbers. ``tiers`` are of all blobs, prefetch included."""

    pid: int
    restarts: int
    uptime_s: float
    rss_bytes: int
    fetching: Fetching
    tiers: dict[str, TierShare]
    blobs: dict[str, BlobStats]


class DaemonClient:
    """Calls to the daemon that listens at ``path``. Safe to use from many threads.

    Every method raises Unavailable if nobody listens, DeadlineExceeded after ``timeout_s``, and what the
    daemon answers: NotFound for an image that is not here, InvalidInput for one that is damaged.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S, clock: Clock | None = None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()

    def ping(self, timeout_s: float | None = None) -> Pong:
        """Whether it answers."""
        return _typed(Pong, self._call({"op": "ping"}, timeout_s))

    def attach(self, digest: str) -> AttachedBlob:
        """Open and check the image's chunk table; reading its file does so, too."""
        return _typed(AttachedBlob, self._call({"op": "attach", "digest": digest}))

    def detach(self, digest: str) -> bool:
        """Forget what is known of it, its trace and prefetch too; False if it was not attached."""
        return self._call({"op": "detach", "digest": digest}).get("was_attached") is True

    def refresh(self, digest: str) -> bool:
        """Its placement has changed; False if it is not attached, so that there is nothing to do."""
        return self._call({"op": "refresh", "digest": digest}).get("is_attached") is True

    def prefetch(
        self,
        digest: str,
        order: Iterable[int] | None = None,
        *,
        trace: str | None = None,
        is_guess: bool = False,
    ) -> PrefetchProgress:
        """Fetch these chunks in this order, or those of a stored trace, or all; ends an earlier prefetch.

        ``is_guess``: more than these will be read.
        """
        request: dict[str, Any] = {"op": "prefetch", "digest": digest, "is_guess": is_guess}
        if order is not None:
            request["order"] = pack_order(order)
        elif trace is not None:
            request["trace"] = trace
        return _typed(PrefetchProgress, self._call(request))

    def prefetch_status(self, digest: str, wait_s: float = 0.0) -> PrefetchProgress:
        """How far it is, after waiting up to ``wait_s`` (at most 20) for its end. Raises NotFound."""
        request = {"op": "prefetch_status", "digest": digest, "wait_s": wait_s}
        return _typed(PrefetchProgress, self._call(request, self._timeout_s + wait_s))

    def prefetch_cancel(self, digest: str) -> PrefetchProgress:
        """Fetch no more of it. Raises NotFound if nothing was prefetched."""
        return _typed(PrefetchProgress, self._call({"op": "prefetch_cancel", "digest": digest}))

    def give_up(self, digest: str) -> bool:
        """Fetch no more of it, and fail the reads that wait for it; False if it is not attached."""
        return self._call({"op": "give_up", "digest": digest}).get("is_attached") is True

    def trace(self, digest: str) -> array[int]:
        """Chunk indices in the order of their first read, since the image was attached or the trace reset."""
        return unpack_order(self._call({"op": "trace_get", "digest": digest}).get("order"))

    def reset_trace(self, digest: str) -> None:
        """Begin its trace anew."""
        self._call({"op": "trace_reset", "digest": digest})

    def stats(self) -> DaemonStats:
        """All numbers."""
        answer = self._call({"op": "stats"})
        blobs = {digest: _blob_stats(blob) for digest, blob in _object(answer, "blobs").items()}
        fetch = _object(answer, "fetch")
        tiers = _tiers(fetch)
        invalid = sum(tier.invalid for tier in tiers.values())
        found = {"fetching": _typed(Fetching, {**fetch, "invalid": invalid}), "tiers": tiers, "blobs": blobs}
        return _typed(DaemonStats, {**answer, **found})

    def metrics(self) -> str:
        """All numbers as Prometheus text."""
        return str(self._call({"op": "metrics"}).get("text", ""))

    def _call(self, request: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """Ask, and ask again if the worker dies meanwhile: every operation may be done twice."""
        deadline_s = self._clock.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        data = json.dumps({"v": CONTROL_VERSION, **request}).encode() + b"\n"
        line = None
        while line is None:
            try:
                line = self._exchange(data, deadline_s)
            except TimeoutError as problem:
                raise _late() from problem
            except (ConnectionResetError, BrokenPipeError):
                continue
            except OSError as problem:
                raise _unreachable(problem) from problem
        return _result(parse_line(line))

    def _exchange(self, data: bytes, deadline_s: float) -> bytes | None:
        """The line that answers ``data``; None if whoever took the connection ended."""
        left_s = deadline_s - self._clock.monotonic()
        if left_s <= 0:
            raise _late()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(left_s)
            connection.connect(str(self._path))
            connection.sendall(data)
            return LineReader(connection, self._clock).read(left_s, left_s)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The blob daemon did not answer in time.", remedy="Look at its log.", stage="blob daemon"
    )


def _unreachable(problem: OSError) -> Unavailable:
    return Unavailable(
        f"The blob daemon cannot be reached: {problem}.",
        remedy="It is started by the next mount; `glowplug doctor` checks what it needs.",
    )


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if isinstance(error, dict):
        raise GlowplugError.from_dict(error)
    return _object(answer, "ok")


def _object(answer: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = answer.get(name)
    if not isinstance(found, dict):
        raise _unreadable(name)
    return found


def _tiers(stats: Mapping[str, Any]) -> dict[str, TierShare]:
    return {name: _typed(TierShare, counts) for name, counts in _object(stats, "tiers").items()}


def _blob_stats(blob: Mapping[str, Any]) -> BlobStats:
    return _typed(BlobStats, {**blob, "tiers": _tiers(blob)})


_T = TypeVar("_T")


def _typed(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """``values`` as a dataclass; what it does not know is left out: a newer daemon may say more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in values.items() if name in names})
    except TypeError as problem:
        raise _unreadable(kind.__name__) from problem


def _unreadable(what: str) -> InvalidInput:
    return InvalidInput(
        f"The blob daemon's answer has no {what} that can be read.",
        remedy="Restart the blob daemon after an update.",
    )
