"""The daemon's numbers as Prometheus text.

Sums over all images: a digest is no label. Written by hand because the daemon's memory is budgeted and this
is all it would need a library for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_BLOB_COUNTERS = {
    "reads": ("reads", "Reads answered."),
    "read_bytes": ("read_bytes", "Bytes of answers."),
    "ssd_bytes": ("ssd_bytes", "Bytes of answers from packs on this machine."),
    "waited_for_disk": ("disk_waits", "Reads that had to wait for the disk."),
    "waited_for_fetch": ("fetch_waits", "Reads that had to wait for chunks from elsewhere."),
    "ssd_chunks": ("ssd_chunks", "Chunks that were on this machine at their first use."),
    "fetched_chunks": ("fetched_chunks", "Chunks that were not."),
    "corrupt_chunks": ("corrupt_chunks", "Chunks found damaged on this machine."),
    "errors": ("read_errors", "Reads that failed with EIO."),
}
_TIER_COUNTERS = {
    "requests": "Requests to a tier.",
    "bytes": "Bytes transferred from a tier.",
    "chunks": "Chunks that a tier gave.",
    "invalid": "Chunks that a tier gave wrong.",
    "errors": "Requests that a tier did not answer.",
    "fallbacks": "Requests to a tier after another one failed.",
}
_FETCH_COUNTERS = {
    "failed": ("failed_chunks", "Chunks that no tier gave, or none gave right."),
    "unstored": ("unstored_chunks", "Chunks that were handed on and not kept: no room."),
    "received_bytes": ("received_bytes", "Bytes from other machines, as they come."),
    "stalls": ("stalls", "Attempts at a read that brought next to nothing, and were made again."),
    "expired": ("expired_waits", "Waits for a chunk that took too long."),
    "given_up": ("given_up_waits", "Waits for a chunk that nobody wanted any more."),
}
_ZONE_COUNTERS = {
    "reads": "Parts of ranges that were read through the zone.",
    "read_bytes": "Bytes that were read through the zone.",
    "hits": "Answers that a cache had.",
    "misses": "Answers that a cache fetched from the region.",
    "hedges": "Second requests because a first one was slow.",
    "hedges_won": "Second requests that were faster.",
    "failures": "Requests that a cache failed, or answered wrongly.",
    "skips": "Times that a cache was left alone for a while.",
    "region_reads": "Reads that went past the caches to the region.",
}


def metrics_text(stats: Mapping[str, Any]) -> str:
    """All of ``stats`` (see :meth:`Operations.stats`) in the text format."""
    return "".join(f"{line}\n" for line in _lines(stats))


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    blobs = stats["blobs"].values()
    yield from _metric("attached_images", "gauge", "Images served now.", {"": len(blobs)})
    yield from _metric("resident_bytes", "gauge", "Memory of the worker.", {"": stats["rss_bytes"]})
    yield from _metric("worker_restarts_total", "counter", "Workers that died.", {"": stats["restarts"]})
    for field, (name, words) in _BLOB_COUNTERS.items():
        yield from _metric(f"{name}_total", "counter", words, {"": sum(blob[field] for blob in blobs)})
    tiers = stats["fetch"]["tiers"]
    for field, words in _TIER_COUNTERS.items():
        samples = {f'{{tier="{tier}"}}': counts[field] for tier, counts in tiers.items()}
        yield from _metric(f"tier_{field}_total", "counter", words, samples)
    for field, (name, words) in _FETCH_COUNTERS.items():
        yield from _metric(f"{name}_total", "counter", words, {"": stats["fetch"][field]})
    zone = stats["zone"]
    if zone:
        for field, words in _ZONE_COUNTERS.items():
            yield from _metric(f"zone_{field}_total", "counter", words, {"": zone[field]})
        skipped = {"": zone["skipped_servers"]}
        yield from _metric("zone_skipped_servers", "gauge", "Caches that are being left alone.", skipped)


def _metric(name: str, kind: str, words: str, samples: Mapping[str, float]) -> Iterator[str]:
    full = f"glowplug_blob_daemon_{name}"
    yield f"# HELP {full} {words}"
    yield f"# TYPE {full} {kind}"
    for labels, number in samples.items():
        yield f"{full}{labels} {number}"
