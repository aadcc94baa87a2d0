"""A zone's counters as Prometheus metrics, for a registry of whoever uses the zone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.chunks.zone import ZoneObjects

_HELP = {
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


class ZoneCollector(Collector):
    """``registry.register(ZoneCollector(zone))``."""

    def __init__(self, zone: ZoneObjects) -> None:
        self._zone = zone

    def collect(self) -> Iterator[Metric]:
        """The counters as they are now, and how many servers are being left alone."""
        for name, value in asdict(self._zone.counters).items():
            yield CounterMetricFamily(f"glowplug_zone_{name}", _HELP[name], value=value)
        yield GaugeMetricFamily(
            "glowplug_zone_skipped_servers",
            "Caches that are being left alone.",
            value=len(self._zone.skipped_servers),
        )
