from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from glowplug.observe.metrics import Metrics, ReasonClass, reason_class
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import Stage, StartPath


def samples(metrics):
    """What a Prometheus server would read: ``{(name, labels): value}``."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def key(name, **labels):
    return name, frozenset(labels.items())


def test_an_answered_start_is_counted_with_its_seconds_and_stages(make_record):
    metrics = Metrics()
    metrics.observe_cold_start(
        make_record(path=StartPath.CPU_SNAPSHOT, total_s=2.5, stages_s={Stage.HOST_INIT: 2.0})
    )
    read = samples(metrics)
    labels = {"app": "chat", "server": "vllm", "path": "cpu_snapshot", "outcome": "answered"}
    assert read[key("glowplug_cold_starts_total", **labels)] == 1
    assert read[key("glowplug_cold_start_seconds_sum", path="cpu_snapshot")] == 2.5
    assert read[key("glowplug_cold_start_seconds_bucket", path="cpu_snapshot", le="3.0")] == 1
    assert read[key("glowplug_cold_start_seconds_bucket", path="cpu_snapshot", le="2.0")] == 0
    stage = {"path": "cpu_snapshot", "stage": "host_init"}
    assert read[key("glowplug_cold_start_stage_seconds_sum", **stage)] == 2.0


def test_a_failed_start_is_counted_and_adds_no_seconds(make_record):
    metrics = Metrics()
    metrics.observe_cold_start(make_record(outcome=Outcome.FAILED, total_s=600.0))
    read = samples(metrics)
    labels = {"app": "chat", "server": "vllm", "path": "cold", "outcome": "failed"}
    assert read[key("glowplug_cold_starts_total", **labels)] == 1
    assert key("glowplug_cold_start_seconds_sum", path="cold") not in read


def test_an_impossible_duration_does_not_poison_the_sums(make_record):
    metrics = Metrics()
    metrics.observe_cold_start(make_record(total_s=-1.0, stages_s={}))
    metrics.observe_cold_start(make_record(total_s=80.0, stages_s={Stage.MOUNT: -1.0}))
    assert samples(metrics)[key("glowplug_cold_start_seconds_sum", path="cold")] == 80.0


def test_restores_fallbacks_and_captures_are_counted():
    metrics = Metrics()
    metrics.count_restore(succeeded=True, restored_bytes=1000)
    metrics.count_restore(succeeded=False)
    assert metrics.count_fallback("The canary differs in choices[0].text") is ReasonClass.WRONG_ANSWER
    metrics.count_capture(succeeded=True, capture_s=5.4)
    metrics.count_capture(succeeded=False)
    read = samples(metrics)
    assert read[key("glowplug_restores_total", outcome="succeeded")] == 1
    assert read[key("glowplug_restores_total", outcome="failed")] == 1
    assert read[key("glowplug_restored_bytes_total")] == 1000
    assert read[key("glowplug_fallbacks_total", reason_class="wrong_answer")] == 1
    assert read[key("glowplug_captures_total", outcome="succeeded")] == 1
    assert read[key("glowplug_capture_seconds_sum")] == 5.4


def test_two_instances_share_nothing():
    one, other = Metrics(), Metrics()
    one.count_restore(succeeded=True)
    assert key("glowplug_restores_total", outcome="succeeded") not in samples(other)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no snapshot was captured yet", ReasonClass.NO_SNAPSHOT),
        ("restore of sn-12 failed: `runsc restore` failed (exit code 128): EOF", ReasonClass.RUNTIME),
        ("No good snapshot for this key yet.", ReasonClass.NO_SNAPSHOT),
        ("snapshots are disabled for this server", ReasonClass.DISABLED),
        ("The nearest snapshot differs in runtime_version.", ReasonClass.KEY_MISMATCH),
        ("pages.img is corrupt: its BLAKE3 differs.", ReasonClass.CORRUPT),
        ("Snapshot sn-1 is quarantined after 3 failures.", ReasonClass.QUARANTINED),
        ("The restored copy's canary answer differs.", ReasonClass.WRONG_ANSWER),
        ("The restore did not finish before its deadline of 60 s.", ReasonClass.DEADLINE),
        ("Not enough memory for the copy.", ReasonClass.RESOURCES),
        ("runsc restore ended with exit code 128.", ReasonClass.RUNTIME),
        ("The driver refuses to restore process 7 (checkpointed): CUDA_ERROR_UNKNOWN.", ReasonClass.GPU),
        ("GPU 0 has 0.5 MiB of device memory free, and the snapshot needs 1.0 MiB.", ReasonClass.GPU),
        ('resources is {"gpu":"H100"}, was {"gpu":"L4"}: another key', ReasonClass.KEY_MISMATCH),
        ("snapshots are disabled for this server: it has gpu=, and ..", ReasonClass.DISABLED),
        ("Something nobody thought of", ReasonClass.OTHER),
        ("", ReasonClass.OTHER),
    ],
)
def test_reasons_fall_into_few_classes(reason, kind):
    assert reason_class(reason) is kind
