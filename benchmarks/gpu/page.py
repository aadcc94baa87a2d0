"""The Markdown page of a run, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report import quantiles, table

from glowplug.observe.plot import Curve, plot_curves
from glowplug.observe.quantiles import quantile
from glowplug.types.errors import GlowplugError

_DECILES = [number / 10 for number in range(11)]
_FAKE = (
    "**DRY RUN on the test suite's fake driver, or on no GPU at all: it shows that this program works. "
    "No figure below says anything about a GPU.**"
)


def page(result: dict[str, Any]) -> list[str]:
    """All lines."""
    machine = result["machine"]
    card = f"{machine['card']}, driver {machine['driver']}"
    lines = [f"# GPU snapshots: {card}", ""]
    if result["is_fake"]:
        lines += [_FAKE, ""]
    lines += [
        f"{machine['gpus']} GPU(s), {machine['gpu_memory_bytes'] / 1e9:.1f} GB; PyTorch {machine['torch']}; "
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load {machine['load_average_1min']}. `{result['command']}`, "
        f"{result['seconds']:.0f} s in all.",
        "",
    ]
    lines += _copy(result.get("copy"), card)
    for size, facts in result["sizes"].items():
        lines += [f"## A model of {size} GB on {card}", "", *_size(facts, result.get("copy")), ""]
    if turns := result.get("turns"):
        lines += [
            f"## {turns['models']} models of {turns['gigabytes_each']:g} GB take turns on {card}", "",
            *_stages(turns, ("park_s", "wake_s", "total_s")), "", _wrong(turns), "",
        ]  # fmt: skip
    if kills := result.get("kills"):
        lines += [f"## kill -9 in every state, {kills['gigabytes']:g} GB on {card}", "", *_kills(kills), ""]
    if weights := result.get("weights"):
        lines += [f"## Weights: streamed, loaded plainly, read in order ({card})", "", *weights["lines"], ""]
    for title, texts in (("Left out", result["left_out"]), ("Failed", result["problems"])):
        if texts:
            lines += [f"## {title}", "", *(f"- {text}" for text in texts), ""]
    return lines


def draw(result: dict[str, Any], output: Path) -> None:
    """``gpu-SIZE.svg`` for each size: cold, restored, woken. Without matplotlib none, which the page says."""
    for size, facts in result["sizes"].items():
        curves = [
            Curve(name, colour, sorted(sample["total_s"] for sample in facts[part]["samples"]))
            for part, name, colour in (
                ("cold", "cold start", "#0072B2"),
                ("restored", "restored from the disk", "#009E73"),
                ("parked", "woken from parked", "#CC79A7"),
            )
            if facts.get(part) and facts[part]["samples"]
        ]
        title = f"{size} GB on {result['machine']['card']}" + (" (FAKE)" if result["is_fake"] else "")
        try:
            plot_curves(curves, output / f"gpu-{size}.svg", title)
        except GlowplugError as error:
            result["left_out"].append(f"picture of {size} GB: {error.message}")


def _copy(copy: dict[str, Any] | None, card: str) -> list[str]:
    if copy is None:
        return []
    rows = [
        (name, *(f"{copy[key][which] / 1e9:.2f}" for which in ("median", "least", "most")), copy[key]["n"])
        for name, key in (
            ("host to device", "to_device_bytes_per_s"),
            ("device to host", "to_host_bytes_per_s"),
        )
    ]
    size = f"{copy['size_bytes'] / 1e9:.2f} GB"
    return [
        f"Copies of {size} of pinned memory, GB/s, {card}:",
        "",
        *table(("", "median", "least", "most", "n"), rows),
        "",
    ]


def _size(facts: dict[str, Any], copy: dict[str, Any] | None) -> list[str]:
    lines: list[str] = []
    if cold := facts.get("cold"):
        names = [name for name in cold["samples"][0] if name != "total_s"]
        lines += [
            "Cold start, seconds by stage:",
            "",
            *_stages(cold, (*names, "total_s")),
            "",
            _wrong(cold),
            "",
        ]
    if parked := facts.get("parked"):
        names = ("lock_s", "checkpoint_s", "park_s", "restore_s", "unlock_s", "wake_s", "total_s")
        lines += ["Parked and woken (total: to an answer):", "", *_stages(parked, names), "", _wrong(parked)]
        lines += [_rates(parked, copy), ""]
    if restored := facts.get("restored"):
        captured = ", ".join(f"{name} {seconds:.3f}" for name, seconds in restored["capture"].items())
        lines += [
            f"Captured {restored['snapshot_bytes'] / 1e9:.2f} GB: {captured}. Restored from the disk:",
            "",
        ]
        names = [name for name in (restored["samples"] or [{}])[0] if name != "total_s"]
        lines += [*_stages(restored, (*names, "total_s")), "", _wrong(restored), ""]
    lines += _distribution(facts)
    return lines


def _stages(facts: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    rows = []
    for name in names:
        values = [sample[name] for sample in facts["samples"] if name in sample]
        if values:
            found = quantiles(values)
            rows.append(
                (name, *(f"{found[q]:.3f}" for q in ("p0", "p50", "p90", "p99", "p100")), len(values))
            )
    return table(("stage", "least", "p50", "p90", "p99", "most", "n"), rows)


def _wrong(facts: dict[str, Any]) -> str:
    if facts["wrong_answers"]:
        return f"**{facts['wrong_answers']} of {facts['n']} ANSWERED WRONGLY.**"
    return f"All {facts['n']} answered as before, bit for bit."


def _rates(parked: dict[str, Any], copy: dict[str, Any] | None) -> str:
    size_bytes = parked["device_bytes"]
    if not parked["samples"] or not size_bytes:
        return ""
    seconds = quantiles([sample["restore_s"] for sample in parked["samples"]])["p50"]
    rate = size_bytes / max(seconds, 1e-9)
    said = f"{size_bytes / 1e9:.2f} GB of PyTorch's memory on the device: {rate / 1e9:.2f} GB/s back (p50)"
    if copy is None:
        return f"{said}."
    return f"{said}, {rate / copy['to_device_bytes_per_s']['median']:.0%} of a measured pinned copy."


def _distribution(facts: dict[str, Any]) -> list[str]:
    """The whole distribution, in tenths, and how often cold is slower."""
    parts = [part for part in ("cold", "restored", "parked") if facts.get(part) and facts[part]["samples"]]
    if not parts:
        return []
    totals = {part: sorted(sample["total_s"] for sample in facts[part]["samples"]) for part in parts}
    rows = []
    for q in _DECILES:
        at = {part: quantile(values, q) for part, values in totals.items()}
        ratios = [f"{at['cold'] / at[part]:.1f}x" if "cold" in at else "" for part in parts if part != "cold"]
        rows.append((f"p{q * 100:g}", *(f"{at[part]:.3f}" for part in parts), *ratios))
    faster = [f"{part} faster by" for part in parts if part != "cold"]
    return ["To the first answer, s:", "", *table(("quantile", *parts, *faster), rows)]


def _kills(kills: dict[str, Any]) -> list[str]:
    columns = ("n", "memory_not_freed", "witness_wrong", "guard_failed")
    rows = [(state, *(counts[name] for name in columns)) for state, counts in kills["states"].items()]
    return table(("killed", *(name.replace("_", " ") for name in columns)), rows)
