from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from glowplug.image.lazy.daemon_metrics import metrics_text

FETCH = {
    "tiers": {}, "failed": 4, "unstored": 0, "received_bytes": 0, "stalls": 0, "expired": 0, "given_up": 0
}  # fmt: skip
STATS: dict[str, Any] = {"blobs": {}, "rss_bytes": 1, "restarts": 2, "fetch": FETCH, "zone": {}}
ZONE = {
    "reads": 1, "read_bytes": 10, "hits": 1, "misses": 0, "hedges": 0, "hedges_won": 0, "failures": 3,
    "skips": 1,
    "region_reads": 0, "skipped_servers": 1,
}  # fmt: skip


def values(stats: dict[str, Any]) -> dict[str, float]:
    families = text_string_to_metric_families(metrics_text(stats))
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_zone_tells_how_its_caches_do() -> None:
    told = values({**STATS, "zone": ZONE})
    assert told["glowplug_blob_daemon_zone_read_bytes_total"] == 10
    assert told["glowplug_blob_daemon_zone_failures_total"] == 3
    assert told["glowplug_blob_daemon_zone_skipped_servers"] == 1


def test_chunks_that_nobody_gave_are_counted() -> None:
    assert values(STATS)["glowplug_blob_daemon_failed_chunks_total"] == 4


def test_without_a_zone_there_is_nothing_to_tell_of_it() -> None:
    assert not [name for name in values(STATS) if "_zone_" in name]
