"""What the engine counts. It has no port: the agent beside it shows its file in ``/metrics``."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from glowplug.engine.port import Machine, MachineState
from glowplug.engine.record import write_atomically


class EngineCounts:
    """Metrics of one engine; :meth:`save` writes them down."""

    def __init__(self, engine: str) -> None:
        self._registry = CollectorRegistry()
        self._machines = Gauge(
            "glowplug_engine_machines",
            "Machines of the engine, by what it says of them.",
            ["engine", "state"],
            registry=self._registry,
        )
        self._joins = Counter(
            "glowplug_engine_joins_total",
            "Times that a machine was told to join.",
            ["engine"],
            registry=self._registry,
        ).labels(engine)
        self._failures = Counter(
            "glowplug_engine_failures_total",
            "Times that a machine, or the engine itself, did not do what it was asked for.",
            ["engine"],
            registry=self._registry,
        ).labels(engine)
        self._engine = engine

    def seen(self, machines: Sequence[Machine]) -> None:
        """What there is now."""
        tally = Tally(machine.state for machine in machines)
        for state in MachineState:
            self._machines.labels(self._engine, state.value).set(tally[state])

    def joined(self) -> None:
        """A machine was told to join."""
        self._joins.inc()

    def failed(self) -> None:
        """Something did not go as it should."""
        self._failures.inc()

    def save(self, file: Path) -> None:
        """As Prometheus text."""
        write_atomically(file, generate_latest(self._registry).decode())
