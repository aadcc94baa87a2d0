"""What the gateway counts, and how much of it is logged: a stranger who knocks all day fills no disk."""

from __future__ import annotations

import logging
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from glowplug.types.clock import Clock

log = logging.getLogger(__name__)

_LOG_EVERY_S = 1.0


class GatewayCounts:
    """Connections and refusals. ``reason`` and ``kind`` have few values."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._opened = Counter(
            "glowplug_gateway_connections",
            "Connections that were let through, by what they went to: agent, router or replica.",
            ["kind"],
            registry=self._registry,
        )
        self._open = Gauge(
            "glowplug_gateway_open_connections", "Of these, open now.", ["kind"], registry=self._registry
        )
        self._refused = Counter(
            "glowplug_gateway_refused",
            "Connections that were refused: handshake, role, opening, replica, agent, router, timeout.",
            ["reason"],
            registry=self._registry,
        )
        self._log_again_at_s = 0.0
        self._unlogged = 0

    def opened(self, kind: str) -> None:
        """One more connection to the agent, the router, or a replica."""
        self._opened.labels(kind).inc()
        self._open.labels(kind).inc()

    def closed(self, kind: str) -> None:
        """One of them is over."""
        self._open.labels(kind).dec()

    def refused(self, reason: str, peer: str, problem: str) -> None:
        """Somebody was turned away. Logged once a second, with how many were not.

        Not where no router runs: control asks every half minute whether one does.
        """
        self._refused.labels(reason).inc()
        if reason == "router":
            return
        now_s = self._clock.monotonic()
        if now_s < self._log_again_at_s:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last line)" if self._unlogged else ""
        log.warning("refused %s: %s: %s%s", peer, reason, problem[:300], more)
        self._log_again_at_s, self._unlogged = now_s + _LOG_EVERY_S, 0

    def write(self, path: Path) -> None:
        """Leave everything where the agent's ``/metrics`` finds it. Raises OSError."""
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(generate_latest(self._registry))
        temporary.rename(path)
