"""vLLM with real weights: its own cold start against a restore, from zero, on the same runtime in one run.

    .venv/bin/python benchmarks/coldstart/bench_vllm.py --cold 3 --restores 30 --concurrent 4

A sample is a question asked of a server that is scaled to zero, timed by the caller until the *whole and
correct* answer is there (and, beside it, until its first token). The cold starts are those of a deployment
without snapshots. Last, several copies are restored at once. Writes vllm.json, vllm.md, vllm-cdf.svg/.png.
"""

from __future__ import annotations

import argparse
import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import report
from chat import Answer, ask
from live_session import EXAMPLES, LiveSession
from storage import sequential_read_bytes_per_s

from glowplug.observe.plot import plot_cdf
from glowplug.observe.quantiles import speedups
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import RuntimeFailed
from glowplug.types.replica import ReplicaState, ReplicaView, SnapshotView, Stage, StartPath

COLD_APP, APP = "chat-cold", "chat"
WANTED_SPEEDUP = 20.0
STORAGE_FACTOR, STORAGE_FIXED_S = 1.3, 0.3


@dataclass(frozen=True)
class Sample:
    """One start, as its caller and as the router saw it."""

    answer: Answer
    record: ColdStartRecord

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "first_token_s": round(self.answer.first_token_s, 4),
            "answered_s": round(self.answer.total_s, 4),
            "record": self.record.model_dump(mode="json"),
        }


def variant(spec: dict[str, Any], memory_gib: int, **changes: Any) -> dict[str, Any]:
    """A copy of the app's specification: quick to scale down, with ``name``, ``scaling``, ... changed."""
    changed = copy.deepcopy(spec)
    changed["name"] = changes.get("name", spec["name"])
    (server,) = changed["servers"]
    server["resources"]["memory_bytes"] = memory_gib << 30
    server["scaling"] |= {"scaledown_window_s": 1.0} | changes.get("scaling", {})
    server["snapshot"]["enabled"] = changes.get("snapshot", True)
    return changed


def start_once(session: LiveSession, app: str, wanted_path: StartPath, expected: str | None) -> Sample:
    """From zero to an answer; raises unless it is the right one and came by the wanted path."""
    session.wait_until_zero(app)
    known_ids = {record.id for record in session.cold_starts(app)}
    answer = ask(session.client, f"/{app}/vllm/v1/chat/completions")
    record = session.wait_for_record(app, known_ids)
    if not answer.is_correct or (expected is not None and answer.text != expected):
        raise RuntimeFailed(f"A wrong answer: {answer.text!r}, expected {expected!r}.", record=record.id)
    if record.path is not wanted_path:
        raise RuntimeFailed(f"A start was {record.path}, not {wanted_path}: {record.fallback_reason}")
    times = f"first token {answer.first_token_s:6.2f} s  answer {answer.total_s:6.2f} s"
    print(f"  {record.path.value:>13}  {times}", flush=True)
    return Sample(answer, record)


def restore_at_once(
    session: LiveSession, spec: dict[str, Any], memory_gib: int, copies: int
) -> dict[str, Any]:
    """Deploy with ``copies`` replicas wanted from the start, and time each until it is ready."""
    session.wait_until_zero(APP)
    session.deploy_spec(variant(spec, memory_gib, scaling={"min_replicas": copies, "max_replicas": copies}))
    ready: list[ReplicaView] = []

    def are_ready() -> bool:
        ready[:] = [view for view in session.replicas(APP) if view.state is ReplicaState.READY]
        return len(ready) >= copies

    session.wait(are_ready, 300.0, f"{copies} replicas at once")
    with ThreadPoolExecutor(copies) as pool:
        answers = list(pool.map(lambda _: ask(session.client), range(2 * copies)))
    session.deploy_spec(variant(spec, memory_gib))
    session.stop(APP)
    if wrong := [answer.text for answer in answers if not answer.is_correct]:
        raise RuntimeFailed(f"Wrong answers from {copies} copies: {wrong}")
    if cold := [view.fallback_reason for view in ready if view.path is StartPath.COLD]:
        raise RuntimeFailed(f"{len(cold)} of {copies} copies were not restored: {cold}")
    seconds = sorted((view.ready_at or 0.0) - view.created_at for view in ready)
    all_s = max(view.ready_at or 0.0 for view in ready) - min(view.created_at for view in ready)
    print(f"  {copies} at once: all ready after {all_s:.2f} s")
    return {
        "all_ready_s": round(all_s, 3),
        "each_ready_s": [round(value, 3) for value in seconds],
        "memory_bytes": [view.memory_bytes for view in ready],
    }


def storage_bound(session: LiveSession, snapshot: SnapshotView, restored: list[Sample]) -> dict[str, Any]:
    """The restore stage against what reading the snapshot from this disk would take."""
    files = (path for path in (session.state.snapshots / snapshot.id).iterdir() if path.is_file())
    bandwidth = sequential_read_bytes_per_s(max(files, key=lambda path: path.stat().st_size))
    limit_s = STORAGE_FACTOR * (snapshot.bytes / bandwidth + STORAGE_FIXED_S)
    stage_s = [sample.record.stages_s[Stage.HOST_INIT] for sample in restored]
    return {
        "bytes": snapshot.bytes,
        "storage_bytes_per_s": round(bandwidth),
        "limit_s": round(limit_s, 3),
        "host_init_s": report.quantiles(stage_s),
    }


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[ColdStartRecord]]:
    """Run everything; returns the result and the records to draw."""
    machine = report.machine()
    with LiveSession() as session:
        spec = session.load_spec(EXAMPLES / "chat_vllm.py")
        memory_gib = arguments.memory_gib
        session.deploy_spec(variant(spec, memory_gib, name=COLD_APP, snapshot=False))
        cold = [start_once(session, COLD_APP, StartPath.COLD, None) for _ in range(arguments.cold)]
        session.wait_until_zero(COLD_APP)

        expected = cold[0].answer.text
        session.deploy_spec(variant(spec, memory_gib))
        start_once(session, APP, StartPath.COLD, expected)
        snapshot = session.wait_for_snapshot(APP)
        restored = [
            start_once(session, APP, StartPath.CPU_SNAPSHOT, expected) for _ in range(arguments.restores)
        ]
        at_once = [
            restore_at_once(session, spec, memory_gib, arguments.concurrent) for _ in range(arguments.rounds)
        ]
        result = {
            "machine": machine,
            "answer": expected,
            "snapshot": snapshot.model_dump(mode="json"),
            "cold": [sample.to_dict() for sample in cold],
            "restored": [sample.to_dict() for sample in restored],
            "speedups": compare(cold, restored),
            "storage": storage_bound(session, snapshot, restored),
            "at_once": {"copies": arguments.concurrent, "rounds": at_once},
        }
    return result, [sample.record for sample in cold + restored]


def compare(cold: list[Sample], restored: list[Sample]) -> dict[str, list[dict[str, float]]]:
    """Cold over restored at every reported quantile, for both clocks of the caller."""
    return {
        clock: [
            {"q": s.q, "cold_s": s.cold_s, "restored_s": s.restored_s, "ratio": s.ratio}
            for s in speedups(
                [getattr(sample.answer, clock) for sample in cold],
                [getattr(sample.answer, clock) for sample in restored],
                report.QUANTILES,
            )
        ]
        for clock in ("total_s", "first_token_s")
    }


def page(result: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    machine, storage, at_once = result["machine"], result["storage"], result["at_once"]
    lines = [
        "# vLLM with SmolLM2-135M: cold start against restore",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load {machine['load_average_1min']}; {len(result['cold'])} cold starts, "
        f"{len(result['restored'])} restores; every answer: {result['answer']!r}.",
    ]
    for clock, title in (("total_s", "whole correct answer"), ("first_token_s", "first token")):
        rows = [
            (
                report.quantile_name(s["q"]),
                f"{s['cold_s']:.2f} s",
                f"{s['restored_s']:.2f} s",
                f"{s['ratio']:.1f}x",
            )
            for s in result["speedups"][clock]
        ]
        lines += [
            "",
            f"## To the {title}",
            "",
            *report.table(("quantile", "cold", "restored", "faster"), rows),
        ]
    rounds = [
        (index, f"{r['all_ready_s']:.2f} s", ", ".join(f"{value:.2f}" for value in r["each_ready_s"]))
        for index, r in enumerate(at_once["rounds"], 1)
    ]
    worst = min(s["ratio"] for s in result["speedups"]["total_s"])
    lines += [
        "",
        f"## {at_once['copies']} copies at once",
        "",
        *report.table(("round", "all ready", "each, seconds"), rounds),
        "",
        "## Budgets",
        "",
        f"- At least {WANTED_SPEEDUP:.0f}x at every quantile: the least is {worst:.1f}x "
        f"({'met' if worst >= WANTED_SPEEDUP else 'MISSED'}).",
        f"- Restore stage p50 {storage['host_init_s']['p50']:.2f} s for {storage['bytes'] / 1e9:.2f} GB; "
        f"1.3 x (bytes / measured {storage['storage_bytes_per_s'] / 1e9:.2f} GB/s + 0.3 s) is "
        f"{storage['limit_s']:.2f} s.",
    ]
    return lines


def main() -> int:
    """Exit code 1 when the speed-up is under its budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", type=int, default=3)
    parser.add_argument("--restores", type=int, default=30)
    parser.add_argument("--concurrent", type=int, default=4, help="copies restored at once")
    parser.add_argument("--rounds", type=int, default=3, help="how often they are restored at once")
    parser.add_argument("--memory-gib", type=int, default=5, help="memory limit of a replica")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    result, records = measure(arguments)
    for suffix in ("svg", "png"):
        plot_cdf(
            records,
            arguments.output / f"vllm-cdf.{suffix}",
            "vLLM with SmolLM2-135M, from zero to its answer",
        )
    report.write(arguments.output, "vllm", result, page(result))
    return 0 if min(s["ratio"] for s in result["speedups"]["total_s"]) >= WANTED_SPEEDUP else 1


if __name__ == "__main__":
    sys.exit(main())
