"""What the loop counts, for Prometheus."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, write_to_textfile

from glowplug.pool.planner.decision import Decision
from glowplug.pool.planner.state import FleetState

METRICS_NAME = "metrics.prom"


class PoolMetrics:
    """Counters and gauges of one planner, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._steps = self._counter(
            "steps", "Steps of the planner, by what their targets rested on.", "source"
        )
        self._events = self._counter("events", "What happened to machines and requests, by kind.", "kind")
        self._failures = self._counter("failures", "What went wrong in the loop itself.", "what")
        self._machines = self._gauge("machines", "Machines by standing.", "pool", "standing")
        self._orders = self._gauge("orders", "Requests that are open.", "pool")
        self._scarcity = self._gauge(
            "scarcity_usd_per_gpu_hour", "What one more GPU is worth.", "gpu", "gpus"
        )
        self._rented = self._gauge("rented_usd_per_hour", "Of every machine that exists.")
        self._spend = self._gauge("spend_usd_per_hour", "If everything that is asked for came as well.")
        self._step_seconds = self._gauge("step_seconds", "How long the last step took.")

    def observe(self, decision: Decision, state: FleetState, step_s: float) -> None:
        """After a step."""
        self._steps.labels(decision.source.value).inc()
        for event in decision.events:
            self._events.labels(event.kind.value).inc()
        self._machines.clear()
        self._orders.clear()
        for held in state.machines.values():
            self._machines.labels(str(held.pool), held.standing.value).inc()
        for order in state.orders.values():
            self._orders.labels(str(order.pool)).inc()
        for price in decision.scarcity:
            self._scarcity.labels(price.gpu, str(price.gpus)).set(price.gpu_usd_per_h)
        self._rented.set(decision.rented_usd_per_h)
        self._spend.set(decision.spend_usd_per_h)
        self._step_seconds.set(step_s)

    def count_failure(self, what: str) -> None:
        """``what`` is one of a few words."""
        self._failures.labels(what).inc()

    def write(self, folder: Path) -> None:
        """For node_exporter's textfile collector, or a look."""
        write_to_textfile(str(folder / METRICS_NAME), self.registry)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"glowplug_pool_{name}", words, labels, registry=self.registry)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"glowplug_pool_{name}", words, labels, registry=self.registry)
