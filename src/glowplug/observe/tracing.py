"""Cold starts as OpenTelemetry traces, for those who already look at traces: one span, a child per stage.

Off unless an OTLP endpoint is configured in the environment in OpenTelemetry's own words
(``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``) and the extra ``otel`` is
installed. Spans are made from closed records, after the caller has its answer, and sent by a background
thread: a slow or dead collector costs a start nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.replica import Stage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CLOSE_DEADLINE_S = 5.0
_log = logging.getLogger(__name__)


class ColdStartTracer(Protocol):
    """Takes closed records. Duties: ``record`` never blocks on the network; ``close`` may be called twice."""

    def record(self, record: ColdStartRecord) -> None:
        """Trace one closed record."""
        ...

    def close(self) -> None:
        """Send what is left, for :data:`CLOSE_DEADLINE_S` at most, and stop."""
        ...


class NoTracer:
    """Tracing is not configured: does nothing."""

    def record(self, record: ColdStartRecord) -> None:
        """Drop it."""

    def close(self) -> None:
        """Nothing to stop."""


class SpanTracer:
    """Turns records into spans and hands them to an OpenTelemetry span processor, which it owns."""

    def __init__(
        self,
        processor: SpanProcessor,
        service_name: str = "glowplug",
        close_deadline_s: float = CLOSE_DEADLINE_S,
    ) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._close_deadline_s = close_deadline_s
        self._is_closed = False
        # Not the global provider: the process may have one of its own, with other plans.
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service_name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("glowplug.observe")

    def record(self, record: ColdStartRecord) -> None:
        """One span for the start and, inside it, one after the other, one for each stage."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        started_ns = _nanoseconds(record.started_at)
        span = self._tracer.start_span("cold start", start_time=started_ns, attributes=_attributes(record))
        if record.outcome is Outcome.FAILED:
            span.set_status(Status(StatusCode.ERROR, record.error or "failed"))
        context = set_span_in_context(span)
        stage_started_ns = started_ns
        for stage in Stage:
            if stage in record.stages_s:
                stage_ended_ns = stage_started_ns + _nanoseconds(record.stages_s[stage])
                child = self._tracer.start_span(stage.value, context=context, start_time=stage_started_ns)
                child.end(stage_ended_ns)
                stage_started_ns = stage_ended_ns
        span.end(started_ns + _nanoseconds(record.total_s))

    def close(self) -> None:
        """Send and stop; what cannot be sent in time is dropped, and logged as such."""
        if self._is_closed:
            return
        self._is_closed = True
        # In a thread of its own, because OpenTelemetry's shutdown sends what is queued and has no deadline
        # that one could set: a collector that takes connections and says nothing would hold us up.
        closing = threading.Thread(target=self._provider.shutdown, name="close-traces", daemon=True)
        closing.start()
        closing.join(self._close_deadline_s)
        if closing.is_alive():
            _log.warning("Some traces were not sent within %.1f s and are lost.", self._close_deadline_s)

    def __enter__(self) -> SpanTracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tracer_from_environment(
    environment: Mapping[str, str], service_name: str = "glowplug"
) -> ColdStartTracer:
    """A tracer that sends to the configured OTLP endpoint, or one that does nothing if none is configured.

    An endpoint without the extra installed is a warning in the log, not an error: such variables are often
    set for a whole machine.
    """
    if not any(environment.get(variable) for variable in ENDPOINT_VARIABLES):
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning("Traces are configured but not sent (%s). Remedy: pip install glowplug[otel]", error)
        return NoTracer()
    return SpanTracer(BatchSpanProcessor(OTLPSpanExporter(endpoint=_endpoint(environment))), service_name)


def _endpoint(environment: Mapping[str, str]) -> str:
    """The traces' own endpoint as it is, or the common one with the path that the protocol gives traces."""
    traces, common = (environment.get(variable, "") for variable in ENDPOINT_VARIABLES)
    return traces or f"{common.rstrip('/')}/v1/traces"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9) if math.isfinite(seconds) and seconds > 0 else 0


def _attributes(record: ColdStartRecord) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "glowplug.record": record.id,
        "glowplug.app": record.app,
        "glowplug.server": record.server,
        "glowplug.deployment": record.deployment_id,
        "glowplug.replica": record.replica_id,
        "glowplug.node": record.node,
        "glowplug.path": record.path.value,
        "glowplug.outcome": record.outcome.value,
    }
    if record.snapshot_id is not None:
        attributes["glowplug.snapshot"] = record.snapshot_id
    if record.fallback_reason is not None:
        attributes["glowplug.fallback_reason"] = record.fallback_reason
    for tier, count in record.bytes_by_tier.items():
        attributes[f"glowplug.bytes.{tier}"] = count
    for tier, count in record.chunks_by_tier.items():
        attributes[f"glowplug.chunks.{tier}"] = count
    return attributes
