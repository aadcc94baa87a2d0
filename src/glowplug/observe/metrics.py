"""The Prometheus metrics that the control plane and the node agent have in common, spelled once.

Base units in the names (``_seconds``, ``_bytes``), and labels whose values are few: names of deployed apps
and members of enumerations, never ids and never free text. A :class:`Metrics` owns its registry, so a
process, or a test, may have as many as it likes and nothing is shared behind its back; a room adds metrics
of its own to :attr:`Metrics.registry`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from glowplug.types.coldstart import ColdStartRecord, Outcome

# From a parked replica's tens of milliseconds to a large model's minutes; dense where budgets lie.
START_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 10, 20, 40, 60, 90, 120, 180, 300, 600)
CAPTURE_BUCKETS_S = (1, 2, 5, 10, 20, 40, 60, 120, 300, 600)


class ReasonClass(StrEnum):
    """Why a start was not a restore, or not a good one: the few kinds that an operator acts on."""

    NO_SNAPSHOT = "no_snapshot"
    DISABLED = "disabled"
    KEY_MISMATCH = "key_mismatch"
    CORRUPT = "corrupt"
    QUARANTINED = "quarantined"
    NODE_QUARANTINED = "node_quarantined"
    KEY_MISSING = "key_missing"
    OPTED_OUT = "opted_out"
    WRONG_ANSWER = "wrong_answer"
    DEADLINE = "deadline"
    GPU = "gpu"
    REGION = "region"
    RESOURCES = "resources"
    RUNTIME = "runtime"
    OTHER = "other"


# Tried in order: the words that the rooms below use in their reasons, most telling first.
_REASON_WORDS: tuple[tuple[ReasonClass, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(words, re.IGNORECASE))
    for kind, words in (
        (ReasonClass.NODE_QUARANTINED, r"node is quarantin"),
        (ReasonClass.KEY_MISSING, r"is sealed with the key"),
        (ReasonClass.OPTED_OUT, r"opted out|a cold start is measured"),
        (ReasonClass.QUARANTINED, r"quarantin"),
        (ReasonClass.WRONG_ANSWER, r"canary|wrong answer|answered differently"),
        (ReasonClass.GPU, r"(?-i:\bGPUs?\b)|CUDA_ERROR|device memory"),
        (ReasonClass.REGION, r"^the region was asked|the region sen(t|ds) "),
        (ReasonClass.CORRUPT, r"corrupt|hash|blake3|truncat|flipped|manifest|missing file"),
        (ReasonClass.DEADLINE, r"deadline|timed? ?out|too long"),
        (ReasonClass.RESOURCES, r"memory|disk|space|capacity"),
        (ReasonClass.DISABLED, r"disabled|switched off"),
        (ReasonClass.NO_SNAPSHOT, r"no (good |matching |usable )?snapshot|not (been )?captured"),
        (ReasonClass.KEY_MISMATCH, r"mismatch|differ|another (version|key)|changed"),
        (ReasonClass.RUNTIME, r"runsc|runtime|restore|sandbox|exit"),
    )
)


def reason_class(reason: str) -> ReasonClass:
    """The class of a fallback reason written for people; ``other`` for one we do not know."""
    return next((kind for kind, words in _REASON_WORDS if words.search(reason)), ReasonClass.OTHER)


class Metrics:
    """Counters and histograms of starts, restores and captures, and the registry that holds them.

    Safe to use from several threads. :meth:`observe_cold_start` is for whoever closes a record;
    ``count_*`` are for the agent, at the moment the thing happens.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._cold_starts = Counter(
            "glowplug_cold_starts",
            "Starts of a replica that was needed, by path and outcome.",
            ("app", "server", "path", "outcome"),
            registry=self.registry,
        )
        self._cold_start_seconds = Histogram(
            "glowplug_cold_start_seconds",
            "From the request that needed a replica to the first byte of its answer.",
            ("path",),
            buckets=START_BUCKETS_S,
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "glowplug_cold_start_stage_seconds",
            "Where the seconds of answered starts went.",
            ("path", "stage"),
            buckets=START_BUCKETS_S,
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "glowplug_fallbacks",
            "Starts that could not use a snapshot, by the kind of reason.",
            ("reason_class",),
            registry=self.registry,
        )
        self._restores = Counter(
            "glowplug_restores", "Restores tried, by outcome.", ("outcome",), registry=self.registry
        )
        self._restored_bytes = Counter(
            "glowplug_restored_bytes", "Bytes of snapshots read by restores.", registry=self.registry
        )
        self._searches = Counter(
            "glowplug_snapshot_searches",
            "Starts without a snapshot here that asked the region for one, by outcome.",
            ("outcome",),
            registry=self.registry,
        )
        self._pushes = Counter(
            "glowplug_snapshot_pushes",
            "Snapshots brought to the region in the background, by outcome.",
            ("outcome",),
            registry=self.registry,
        )
        self._expired = Counter(
            "glowplug_snapshots_expired",
            "Snapshots removed because nobody used them for longer than GLOWPLUG_SNAPSHOT_TTL.",
            registry=self.registry,
        )
        self._superseded = Counter(
            "glowplug_snapshots_superseded",
            "Snapshots removed as their servers have GLOWPLUG_SNAPSHOTS_PER_SERVER that were used later.",
            registry=self.registry,
        )
        self._captures = Counter(
            "glowplug_captures", "Captures tried, by outcome.", ("outcome",), registry=self.registry
        )
        self._capture_seconds = Histogram(
            "glowplug_capture_seconds",
            "From freezing a replica to its snapshot being in place.",
            buckets=CAPTURE_BUCKETS_S,
            registry=self.registry,
        )

    def observe_cold_start(self, record: ColdStartRecord) -> None:
        """Count a closed record; of an answered one also its seconds."""
        self._cold_starts.labels(record.app, record.server, record.path.value, record.outcome.value).inc()
        if record.outcome is not Outcome.ANSWERED or not _is_duration(record.total_s):
            return
        self._cold_start_seconds.labels(record.path.value).observe(record.total_s)
        for stage, seconds in record.stages_s.items():
            if _is_duration(seconds):
                self._stage_seconds.labels(record.path.value, stage.value).observe(seconds)

    def count_restore(self, *, succeeded: bool, restored_bytes: int = 0) -> None:
        """One restore was tried and is over; ``restored_bytes`` is how much of a snapshot it read."""
        self._restores.labels(_outcome(succeeded)).inc()
        self._restored_bytes.inc(max(restored_bytes, 0))

    def count_fallback(self, reason: str) -> ReasonClass:
        """A start could not use a snapshot, for this reason. Returns the class it was counted under."""
        kind = reason_class(reason)
        self._fallbacks.labels(kind.value).inc()
        return kind

    def count_capture(self, *, succeeded: bool, capture_s: float | None = None) -> None:
        """One capture was tried and is over."""
        self._captures.labels(_outcome(succeeded)).inc()
        if capture_s is not None and _is_duration(capture_s):
            self._capture_seconds.observe(capture_s)

    def count_search(self, outcome: str) -> None:
        """The region was asked for a snapshot, or not; ``outcome`` is one of a few words."""
        self._searches.labels(outcome).inc()

    def count_push(self, succeeded: bool) -> None:
        """A snapshot was to be brought to the region by itself."""
        self._pushes.labels(_outcome(succeeded)).inc()

    def count_expired(self, count: int) -> None:
        """So many snapshots were removed because nobody used them."""
        self._expired.inc(count)

    def count_superseded(self, count: int) -> None:
        """So many snapshots were removed because there were enough newer ones of their servers."""
        self._superseded.inc(count)

    def show_trust(self, *, is_quarantined: Callable[[], bool], opted_out: Callable[[], int]) -> None:
        """Show a node's verdicts, asked whenever somebody looks."""
        Gauge(
            "glowplug_node_quarantined",
            "Whether this node restores nothing, because restores of different snapshots failed in a row.",
            registry=self.registry,
        ).set_function(lambda: float(is_quarantined()))
        Gauge(
            "glowplug_opted_out_snapshots",
            "Snapshot keys whose restores are not faster than cold starts on this node.",
            registry=self.registry,
        ).set_function(lambda: float(opted_out()))

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of ``/metrics``."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def _outcome(succeeded: bool) -> str:
    return "succeeded" if succeeded else "failed"


def _is_duration(seconds: float) -> bool:
    """A histogram's sum never recovers from one NaN or infinity, so only real durations go in."""
    return math.isfinite(seconds) and seconds >= 0
