"""From samples to figures: quantiles side by side, ratios at each, promises kept or missed, a CDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import report
from engines import Engine
from samples import SampleLog

from glowplug.observe.plot import Curve, plot_curves
from glowplug.observe.quantiles import quantile, speedups

SHOWN = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
EVERY = tuple(percent / 100 for percent in range(101))
HOST = "host cold"
STORAGE_FACTOR, STORAGE_FIXED_S = 1.3, 0.3


def evaluate(engine: Engine, machine: dict[str, Any], log: SampleLog, runtimes: list[str]) -> dict[str, Any]:
    """Everything that was measured, and what follows from it."""
    seconds = _seconds(log)
    comparisons = {}
    for runtime in runtimes:
        restored = seconds.get(f"{runtime} restored")
        for versus in (f"{runtime} cold", HOST):
            if restored and seconds.get(versus):
                comparisons[f"{runtime} restored / {versus}"] = _compare(seconds[versus], restored)
    loads = [sample.load_average for sample in log.samples]
    return {
        "engine": engine.name,
        "machine": machine,
        "load_average": {"least": min(loads, default=0.0), "most": max(loads, default=0.0)},
        "answer": next(iter(log.noted("answer")), None),
        "disk_bytes_per_s": log.noted("disk_bytes_per_s"),
        "snapshots": {note["runtime"]: note["snapshot"] for note in log.notes if "snapshot" in note},
        "at_once": {note["runtime"]: note["at_once"] for note in log.notes if "at_once" in note},
        "cases": {case: _case(log, case) for case in seconds},
        "comparisons": comparisons,
        "promises": _promises(engine, comparisons, runtimes),
    }


def plot(log: SampleLog, runtimes: list[str], stem: Path, title: str) -> None:
    """One picture per runtime, ``STEM-RUNTIME.svg`` and ``.png``; none where it was not measured."""
    seconds = _seconds(log)
    names = {HOST: ("bare host, cold start", "#777777")}
    for runtime in runtimes:
        names[f"{runtime} cold"] = ("cold start", "#0072B2")
        names[f"{runtime} restored"] = ("restored from a snapshot", "#D55E00")
        mine = [case for case in (HOST, f"{runtime} cold", f"{runtime} restored") if case in seconds]
        curves = [Curve(names[case][0], names[case][1], seconds[case]) for case in mine]
        for suffix in ("svg", "png") if curves else ():
            target = stem.with_name(f"{stem.name}-{runtime}.{suffix}")
            plot_curves(curves, target, f"{title} in {runtime}, from zero to the whole answer")


def page(result: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    machine, load = result["machine"], result["load_average"]
    disk = sorted(result["disk_bytes_per_s"])
    lines = [
        f"# {result['engine']}: cold starts against restores",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load {load['least']:.1f}-{load['most']:.1f}; "
        f"every answer: {result['answer']!r}.",
    ]
    if disk:
        lines += ["", f"The disk reads {quantile(disk, 0.5) / 1e9:.2f} GB/s in order (n = {len(disk)})."]
    lines += ["", "## To the whole correct answer", "", *_quantile_table(result["cases"])]
    for name, comparison in result["comparisons"].items():
        ratios = ", ".join(f"{report.quantile_name(s['q'])} {s['ratio']:.1f}x" for s in comparison["shown"])
        verdict = (
            "better at every quantile" if comparison["is_better_everywhere"] else "NOT better everywhere"
        )
        lines += ["", f"**{name}**: {verdict} (least {comparison['least_ratio']:.1f}x): {ratios}."]
    lines += ["", *_restore_bounds(result)]
    for runtime, copies in result["at_once"].items():
        lines += [
            f"- {runtime}: {copies['copies']} copies at once, all ready: {copies['all_ready_s']:.2f} s."
        ]
    for promise in result["promises"]:
        kept = "kept" if promise["is_kept"] else "MISSED"
        lines += [f"- {promise['what']}: wanted {promise['wanted']}, is {promise['is']:.1f}x ({kept})."]
    return lines


def _seconds(log: SampleLog) -> dict[str, list[float]]:
    """Ascending times to the whole answer, by case."""
    found: dict[str, list[float]] = {}
    for sample in log.samples:
        found.setdefault(sample.case, []).append(sample.answered_s)
    return {case: sorted(found[case]) for case in sorted(found)}


def _case(log: SampleLog, case: str) -> dict[str, Any]:
    samples = [sample for sample in log.samples if sample.case == case]
    records = [sample.record for sample in samples if sample.record is not None]
    stages = {stage for record in records for stage in record["stages_s"]}
    return {
        "n": len(samples),
        "answered_s": _quantiles([sample.answered_s for sample in samples]),
        "first_token_s": _quantiles([sample.first_token_s for sample in samples]),
        "disk_bytes": _quantiles([float(sample.disk_bytes) for sample in samples]),
        "stages_p50_s": {
            stage: round(quantile(sorted(r["stages_s"].get(stage, 0.0) for r in records), 0.5), 4)
            for stage in sorted(stages)
        },
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {report.quantile_name(q): round(quantile(ordered, q), 4) for q in (0.0, *SHOWN, 1.0)}


def _compare(cold_s: list[float], restored_s: list[float]) -> dict[str, Any]:
    """Ratios at the quantiles that are shown, and the least at any percentile from 0 to 100."""
    least = min(speedup.ratio for speedup in speedups(cold_s, restored_s, EVERY))
    shown = speedups(cold_s, restored_s, SHOWN)
    return {
        "shown": [
            {"q": s.q, "cold_s": s.cold_s, "restored_s": s.restored_s, "ratio": s.ratio} for s in shown
        ],
        "least_ratio": least,
        "is_better_everywhere": least > 1.0,
    }


def _promises(engine: Engine, comparisons: dict[str, Any], runtimes: list[str]) -> list[dict[str, Any]]:
    """What the engine promises; one that promises nothing only checks this benchmark."""
    found = []
    for name, comparison in comparisons.items() if engine.wanted else ():
        least = comparison["least_ratio"]
        found.append(_promise(f"{name}, any quantile", "over 1x", least, least > 1.0))
    for figure, wanted in engine.wanted.items():
        for runtime in runtimes:
            prefix, _, name = figure.rpartition("_")
            versus = HOST if prefix == "host" else f"{runtime} cold"
            comparison = comparisons.get(f"{runtime} restored / {versus}")
            if comparison is not None:
                ratio = next(s["ratio"] for s in comparison["shown"] if report.quantile_name(s["q"]) == name)
                what = f"{runtime} restored / {versus}, {name}"
                found.append(_promise(what, f"{wanted:g}x", ratio, ratio >= wanted))
    return found


def _promise(what: str, wanted: str, ratio: float, is_kept: bool) -> dict[str, Any]:
    return {"what": what, "wanted": wanted, "is": ratio, "is_kept": is_kept}


def _quantile_table(cases: dict[str, Any]) -> list[str]:
    names = list(cases)
    rows = [["n", *(cases[name]["n"] for name in names)]]
    for q in (0.0, *SHOWN, 1.0):
        quantile_name = report.quantile_name(q)
        rows.append([quantile_name, *(f"{cases[name]['answered_s'][quantile_name]:.2f} s" for name in names)])
    megabytes = [cases[name]["disk_bytes"]["p50"] / 1e6 for name in names]
    rows.append(["read from disk, p50", *(f"{value:.0f} MB" for value in megabytes)])
    return report.table(("quantile", *names), rows)


def _restore_bounds(result: dict[str, Any]) -> list[str]:
    """Where the restore time goes, against what reading the snapshot from the disk would take."""
    lines = []
    for case, figures in result["cases"].items():
        runtime, _, kind = case.partition(" ")
        snapshot = result["snapshots"].get(runtime)
        if not kind.startswith("restored") or snapshot is None or not result["disk_bytes_per_s"]:
            continue
        bandwidth = quantile(sorted(result["disk_bytes_per_s"]), 0.5)
        bound_s = STORAGE_FACTOR * snapshot["bytes"] / bandwidth + STORAGE_FIXED_S
        stages = ", ".join(f"{name} {value:.2f} s" for name, value in figures["stages_p50_s"].items())
        lines.append(
            f"- {case}: {stages} at p50; {STORAGE_FACTOR} x ({snapshot['bytes'] / 1e9:.2f} GB / disk) + "
            f"{STORAGE_FIXED_S} s is {bound_s:.2f} s."
        )
    return lines
