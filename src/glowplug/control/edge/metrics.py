"""What a router on a node counts. Names it shares with the control plane's router mean the same there."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.control.edge.follower import Follower
from glowplug.control.edge.table import RouteTable
from glowplug.control.edge.upstream import Upstream
from glowplug.control.overhead import OverheadHistogram


class EdgeCollector(Collector):
    """Reads the counters at the moment of a scrape. Those of removed servers end with them."""

    def __init__(
        self, table: RouteTable, upstream: Upstream, follower: Follower, overhead: OverheadHistogram
    ) -> None:
        self._table = table
        self._upstream = upstream
        self._follower = follower
        self._overhead = overhead

    def collect(self) -> Iterable[Metric]:
        """All metric families."""
        labels = ("app", "server")
        requests = CounterMetricFamily(
            "glowplug_requests",
            "Requests by class of the answer's status (0xx: the caller left first, 1xx: WebSocket).",
            labels=(*labels, "status_class"),
        )
        retried = CounterMetricFamily("glowplug_requests_retried", "Attempts repeated.", labels=labels)
        in_flight = GaugeMetricFamily("glowplug_in_flight_requests", "Requests in flight now.", labels=labels)
        replicas = GaugeMetricFamily(
            "glowplug_router_replicas", "Replicas that requests may go to.", labels=labels
        )
        for names, server in self._table.servers.items():
            for status_class, count in enumerate(server.counters.by_status_class):
                requests.add_metric((*names, f"{status_class}xx"), count)
            retried.add_metric(names, server.counters.retried)
            in_flight.add_metric(names, server.in_flight)
            replicas.add_metric(names, len(server.ready))
        yield from (requests, retried, in_flight, replicas)
        yield CounterMetricFamily(
            "glowplug_router_handed_on",
            "Requests that went to the control plane: no replica known here could take them.",
            value=self._upstream.handed_on,
        )
        yield GaugeMetricFamily(
            "glowplug_router_table_age_seconds",
            "How long ago the control plane said that the table is up to date; infinite before the first.",
            value=self._table.age_s,
        )
        yield CounterMetricFamily(
            "glowplug_router_updates", "Messages of the control plane.", value=self._follower.updates
        )
        yield self._overhead.family()
