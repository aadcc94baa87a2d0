from __future__ import annotations

import builtins
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from glowplug.observe.tracing import NoTracer, SpanTracer, tracer_from_environment
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import Stage, StartPath


@pytest.fixture
def traced():
    """``traced(record)``: the finished spans by name."""
    exporter = InMemorySpanExporter()
    with SpanTracer(SimpleSpanProcessor(exporter)) as tracer:

        def trace(record):
            tracer.record(record)
            return {span.name: span for span in exporter.get_finished_spans()}

        yield trace


@pytest.fixture
def collector():
    """A real OTLP collector on loopback: ``(url, requests it has got)``."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Encoding"], body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_start_is_one_span_with_a_child_for_each_stage_end_to_end(traced, make_record):
    spans = traced(
        make_record(started_at=100.0, total_s=3.0, stages_s={Stage.MOUNT: 1.0, Stage.HOST_INIT: 2.0})
    )
    start, mount, host_init = spans["cold start"], spans["mount"], spans["host_init"]
    assert (start.start_time, start.end_time) == (100 * 10**9, 103 * 10**9)
    assert (mount.start_time, mount.end_time) == (100 * 10**9, 101 * 10**9)
    assert (host_init.start_time, host_init.end_time) == (101 * 10**9, 103 * 10**9)
    assert mount.parent.span_id == host_init.parent.span_id == start.context.span_id


def test_the_span_says_what_the_record_says(traced, make_record):
    record = make_record(
        path=StartPath.CPU_SNAPSHOT,
        snapshot_id="sn-1",
        bytes_by_tier={"page_cache": 7},
        chunks_by_tier={"page_cache": 2},
        fallback_reason="why",
    )
    attributes = traced(record)["cold start"].attributes
    assert attributes["glowplug.app"] == "chat"
    assert attributes["glowplug.path"] == "cpu_snapshot"
    assert attributes["glowplug.snapshot"] == "sn-1"
    assert attributes["glowplug.bytes.page_cache"] == 7
    assert attributes["glowplug.chunks.page_cache"] == 2
    assert attributes["glowplug.fallback_reason"] == "why"


def test_a_failed_start_is_an_error_span(traced, make_record):
    status = traced(make_record(outcome=Outcome.FAILED, error="exited with 3"))["cold start"].status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "exited with 3")


def test_without_an_endpoint_nothing_is_traced(make_record):
    tracer = tracer_from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert isinstance(tracer, NoTracer)
    tracer.record(make_record())
    tracer.close()


@pytest.mark.parametrize(
    ("variable", "suffix"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", "/"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces")],
)
def test_spans_reach_a_collector(collector, make_record, variable, suffix):
    url, received = collector
    tracer = tracer_from_environment({variable: url + suffix}, service_name="glowplug-control")
    tracer.record(make_record(stages_s={Stage.HOST_INIT: 1.0}))
    tracer.close()
    tracer.close()
    deadline_s = time.monotonic() + 60
    while not received and time.monotonic() < deadline_s:  # the end waits for a busy machine only so long
        time.sleep(0.02)
    ((path, _encoding, body),) = received
    assert path == "/v1/traces"
    request = ExportTraceServiceRequest.FromString(body)
    (resource,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}[
        "service.name"
    ] == "glowplug-control"
    assert {span.name for span in resource.scope_spans[0].spans} == {"cold start", "host_init"}


def test_a_collector_that_never_answers_does_not_hold_up_the_end(make_record, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        exporter = OTLPSpanExporter(
            endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces", timeout=10
        )
        tracer = SpanTracer(BatchSpanProcessor(exporter), close_deadline_s=0.2)
        tracer.record(make_record())
        with caplog.at_level(logging.WARNING, logger="glowplug.observe.tracing"):
            tracer.close()
    assert "are lost" in caplog.text


def test_an_endpoint_without_the_extra_is_a_warning_with_a_remedy(monkeypatch, caplog):
    real_import = builtins.__import__

    def without_opentelemetry(name, *args, **kwargs):
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_opentelemetry)
    tracer = tracer_from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert isinstance(tracer, NoTracer)
    assert "pip install glowplug[otel]" in caplog.text
