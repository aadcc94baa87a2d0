"""How long requests spend in a router itself, as a histogram that costs next to nothing to add to."""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client.core import HistogramMetricFamily

OVERHEAD_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0)


class OverheadHistogram:
    """Seconds a warm request spent in the router itself, not in waiting for the replica."""

    def __init__(self) -> None:
        self._counts = [0] * (len(OVERHEAD_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """One more request."""
        self._counts[bisect_left(OVERHEAD_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def family(self) -> HistogramMetricFamily:
        """As Prometheus wants it: cumulative buckets."""
        buckets = []
        total = 0
        for bound, count in zip([*map(str, OVERHEAD_BUCKETS_S), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return HistogramMetricFamily(
            "glowplug_router_overhead_seconds",
            "Seconds a warm request spent in the router itself.",
            buckets=buckets,
            sum_value=self._sum_s,
        )
