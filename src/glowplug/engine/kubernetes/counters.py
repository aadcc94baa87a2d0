"""What the operator counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class OperatorCounters:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.writes = Counter(
            "glowplug_operator_writes",
            "Objects written to the API server, by resource.",
            ["resource"],
            registry=self.registry,
        )
        self.delayed_writes = Counter(
            "glowplug_operator_delayed_writes",
            "Changes of replicas that were left for the next round, as the budget of writes was spent.",
            registry=self.registry,
        )
        self.failures = Counter(
            "glowplug_operator_failures",
            "Rounds that failed and are tried again, by job.",
            ["job"],
            registry=self.registry,
        )
        self.last_success = Gauge(
            "glowplug_operator_last_success_timestamp_seconds",
            "When a round succeeded last, by job.",
            ["job"],
            registry=self.registry,
        )
        self.deployments = Counter(
            "glowplug_operator_deployments",
            "Apps that were deployed, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.reminders = Counter(
            "glowplug_operator_reminders",
            "Times that an App which nobody attended to was told of again.",
            registry=self.registry,
        )
        self.abandoned = Counter(
            "glowplug_operator_abandoned_apps",
            "Apps that went while the control plane could not be told to undeploy them.",
            registry=self.registry,
        )

    def wrote(self, resource: str) -> None:
        """One write."""
        self.writes.labels(resource.rpartition("/")[2]).inc()
