"""The control plane's own metrics: what happened to requests, what replicas there are, the router's overhead.

The router counts in plain integers, because its path is hot; this collector reads them when Prometheus asks.
Cold starts and fallbacks are :class:`glowplug.observe.metrics.Metrics`, in the same registry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.control.fleet import Fleet
from glowplug.control.node_link import NodeLink
from glowplug.control.overhead import OverheadHistogram
from glowplug.control.target import Target
from glowplug.types.cluster import NodeState


class FleetCollector(Collector):
    """Reads the fleet's counters at the moment of a scrape. Counters of removed apps end with them."""

    def __init__(self, fleet: Fleet, links: Sequence[NodeLink], overhead: OverheadHistogram) -> None:
        self._fleet = fleet
        self._links = links
        self._overhead = overhead

    def collect(self) -> Iterable[Metric]:
        """All metric families."""
        labels = ("app", "server")
        requests = CounterMetricFamily(
            "glowplug_requests",
            "Requests by class of the answer's status (0xx: the caller left first, 1xx: WebSocket).",
            labels=(*labels, "status_class"),
        )
        held = CounterMetricFamily("glowplug_requests_held", "Requests that waited.", labels=labels)
        retried = CounterMetricFamily("glowplug_requests_retried", "Attempts repeated.", labels=labels)
        rejected = CounterMetricFamily(
            "glowplug_requests_rejected", "Requests refused because the queue was full.", labels=labels
        )
        waiting = GaugeMetricFamily("glowplug_held_requests", "Requests waiting now.", labels=labels)
        in_flight = GaugeMetricFamily("glowplug_in_flight_requests", "Requests in flight now.", labels=labels)
        desired = GaugeMetricFamily("glowplug_replicas_desired", "Replicas wanted.", labels=labels)
        replicas = GaugeMetricFamily("glowplug_replicas", "Replicas by state.", labels=(*labels, "state"))
        heat = CounterMetricFamily(
            "glowplug_heat_steps",
            "Steps on the heat ladder: parked, pushed_out, woken, not_woken, cooled (parked to stopped), "
            "made_way (one of them, to give a GPU to another server), and priced (one that scarcity prices "
            "chose).",
            labels=(*labels, "step"),
        )
        for target in self._fleet.targets():
            names = (target.app, target.server)
            for status_class, count in enumerate(target.counters.by_status_class):
                requests.add_metric((*names, f"{status_class}xx"), count)
            held.add_metric(names, target.counters.held)
            retried.add_metric(names, target.counters.retried)
            rejected.add_metric(names, target.counters.rejected)
            waiting.add_metric(names, len(target.held))
            in_flight.add_metric(names, target.in_flight)
            desired.add_metric(names, target.desired)
            for step, count in target.counters.heat_steps.items():
                heat.add_metric((*names, step), count)
            for state, count in _states(target).items():
                replicas.add_metric((*names, state), count)
        yield from (requests, held, retried, rejected, waiting, in_flight, desired, replicas, heat)
        yield self._nodes()
        yield self._overhead.family()

    def _nodes(self) -> Metric:
        nodes = GaugeMetricFamily("glowplug_nodes", "Machines by state.", labels=("state",))
        states = Counter(link.state.value for link in self._links)
        for state in NodeState:
            nodes.add_metric((state.value,), states[state.value])
        return nodes


def _states(target: Target) -> Counter[str]:
    return Counter(replica.view.state.value for replica in target.replicas.values())
