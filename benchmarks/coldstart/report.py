"""What every cold-start benchmark writes: one JSON file with all samples, one Markdown page for people."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glowplug.observe.quantiles import quantile

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu_lines if line.startswith("model name")), "?")
    memory_kb = int(Path("/proc/meminfo").read_text().split(maxsplit=2)[1])
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kb / (1 << 20), 1),
        "kernel": platform.release(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def quantiles(values_s: Sequence[float]) -> dict[str, float]:
    """``{"p0": fastest, .., "p100": slowest}``."""
    ordered = sorted(values_s)
    return {quantile_name(q): round(quantile(ordered, q), 4) for q in QUANTILES}


def quantile_name(q: float) -> str:
    """``p50`` for 0.5."""
    return f"p{q * 100:g}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table, first column to the left, the others to the right."""
    align = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in (header, align, *rows)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``median (least-most)``."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def write(output: Path, name: str, result: dict[str, Any], lines: Sequence[str]) -> None:
    """Write ``name.json`` and ``name.md`` to ``output`` and print the latter."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    page = "\n".join(lines) + "\n"
    (output / f"{name}.md").write_text(page)
    print(page)
    print(f"Written: {output / name}.json and .md")
