"""vLLM's snapshot, captured on one node, restored on another with an empty cache, from an S3 server.

    .venv/bin/python benchmarks/snapshot/bench_vllm_remote.py --runs 2

One node starts a real vLLM with real weights (``examples/chat_vllm.py``) cold, captures it, pushes the
snapshot to an S3 API (moto's, on this machine) and restores it from its own disk, page cache dropped. Then
fresh nodes with empty state directories are asked for the same server, through a zone cache (nginx): the
first finds the cache empty, the others what the first one fetched. Clocks run from the request to its whole
answer, which must be the same, and right, each time. Writes snapshot-vllm-remote.json and .md. Run
``make engines services`` before.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))

import report
from chat import ask
from lazy_demo import APP, s3_server, zone_cache
from live_session import EXAMPLES, LiveSession
from rich.console import Console

from glowplug.observe.waterfall import waterfall
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import SnapshotView, StartPath

WIDTH = 100
WAYS = {
    "cold": "cold start",
    "local": "own disk, caches dropped",
    "first": "empty node, empty zone cache",
    "remote": "empty node, filled zone cache",
}
Samples = dict[str, list[dict[str, Any]]]


def measure(runs: int) -> dict[str, Any]:
    """All starts, in order: cold, from this node's disk, from the region."""
    machine, samples = report.machine(), Samples({way: [] for way in WAYS})
    with s3_server() as region:
        snapshot = _local(region, runs, samples)
        with zone_cache(region) as environment:
            for way in ("first", *["remote"] * runs):
                with LiveSession({**environment, "GLOWPLUG_SHARE_SNAPSHOTS": "pull"}) as session:
                    _deploy(session)
                    _drop_page_cache()
                    samples[way].append(_start(session, StartPath.CPU_SNAPSHOT))
    answers = {sample["text"] for found in samples.values() for sample in found}
    if len(answers) > 1:
        raise GlowplugError(f"The answers differ: {answers}")
    quantiles = {
        way: report.quantiles(sorted(sample["answered_s"] for sample in found))
        for way, found in samples.items()
    }
    return {
        "machine": machine,
        "snapshot_bytes": snapshot.bytes,
        "samples": samples,
        "quantiles_s": quantiles,
        "factor_p50": quantiles["remote"]["p50"] / quantiles["local"]["p50"],
    }


def _local(region: dict[str, str], runs: int, samples: Samples) -> SnapshotView:
    with LiveSession(region) as session:
        _deploy(session)
        samples["cold"].append(_start(session, StartPath.COLD))
        snapshot = session.wait_for_snapshot(APP)
        print(session.glowplug("snapshot", "push", snapshot.id, timeout_s=900).strip(), flush=True)
        for _ in range(runs):
            session.stop(APP)
            session.wait_until_zero(APP)
            _drop_page_cache()
            samples["local"].append(_start(session, StartPath.CPU_SNAPSHOT))
        return snapshot


def _deploy(session: LiveSession) -> None:
    session.deploy_spec(session.load_spec(EXAMPLES / "chat_vllm.py"))


def _start(session: LiveSession, path: StartPath) -> dict[str, Any]:
    """Ask a server that does not run. Raises GlowplugError unless it starts in this way and answers right."""
    known = {record.id for record in session.cold_starts(APP)}
    answer = ask(session.client)
    record = session.wait_for_record(APP, known)
    print(f"{answer.total_s:.2f} s: {answer.text}\n{_picture(record)}", flush=True)
    if record.path is not path or not answer.is_correct:
        raise GlowplugError(f"{answer.text!r} came by way of {record.path}: {record.fallback_reason}")
    return {"answered_s": answer.total_s, "text": answer.text, "record": record.model_dump(mode="json")}


def _picture(record: ColdStartRecord) -> str:
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(waterfall(record, WIDTH))
    return captured.get().rstrip()


def _drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def page(result: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    machine = result["machine"]
    rows = [
        (name, *(f"{result['quantiles_s'][way][name]:.2f} s" for way in WAYS))
        for name in ("p0", "p50", "p100")
    ]
    records = [
        ColdStartRecord.model_validate(sample["record"])
        for way in ("first", "remote")
        for sample in result["samples"][way]
    ]
    fetched = [
        ", ".join(f"{count / 1e6:.0f} MB from {tier}" for tier, count in record.bytes_by_tier.items())
        for record in records
    ]
    return [
        f"# vLLM's snapshot of {result['snapshot_bytes'] / 1e6:.0f} MB restored on a node that has nothing",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, load {machine['load_average_1min']}; S3 server (moto) and nginx on the same "
        f"machine; cold and first once, {len(records) - 1} runs of the others.",
        "",
        *report.table(("quantile", *WAYS.values()), rows),
        "",
        f"At p50 the empty node takes {result['factor_p50']:.2f} x its own disk, with the zone cache filled. "
        f"Bytes: {'; '.join(fetched)}.",
        "",
        "```",
        _picture(records[-1]),
        "```",
    ]


def main() -> int:
    """Exit code 1 unless every start worked as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    result = measure(arguments.runs)
    report.write(arguments.output, "snapshot-vllm-remote", result, page(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
