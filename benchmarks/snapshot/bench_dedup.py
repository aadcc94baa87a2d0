"""How much of a server's second snapshot is in its first: both runtimes, plain and sealed.

    .venv/bin/python benchmarks/snapshot/bench_dedup.py

A PyTorch server (`make engine` installs PyTorch) with 200 MB of weights that are the same at each start, as
those of a file are, is captured twice from one image, the second time with another environment: another key,
as a new version has. What the first snapshot brought to the node is not stored again. Budget: at least 0.30
of the second one's bytes (exit code 1 when missed). Writes dedup.json and .md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import report
from tests.e2e.engines import ENGINE
from tests.node.cases import captured
from tests.node.live_agent import LiveAgent
from torch_memory import SERVER

from glowplug.snapshot.sealing.keys import FILE_VARIABLE, make_key_file

RUNTIMES = ("runsc", "runc")
KINDS = ("plain", "sealed")
WANTED_SHARE = 0.30
MEMORY_BYTES = 1 << 30


def capture_twice(agent: LiveAgent, runtime: str, megabytes: int) -> dict[str, Any]:
    """Bytes of both snapshots, and how many of them were here before."""
    snapshots = [
        captured(
            agent,
            agent.server(
                *("python3", "-c", SERVER.format(megabytes=megabytes)),
                name=f"version-{version}",
                runtime=runtime,
                snapshot={},
                env={"VERSION": version},
                resources={"memory_bytes": MEMORY_BYTES},
            ),
        )
        for version in ("1", "2")
    ]
    assert snapshots[0]["id"] != snapshots[1]["id"]
    sizes = [{name: one[name] for name in ("bytes", "deduplicated_bytes")} for one in snapshots]
    return {"snapshots": sizes, "share": sizes[1]["deduplicated_bytes"] / sizes[1]["bytes"]}


def measure(megabytes: int) -> dict[str, dict[str, Any]]:
    """``{runtime: {kind: ..}}``, each on a node of its own: what one captured is not here for another."""
    found: dict[str, dict[str, Any]] = {runtime: {} for runtime in RUNTIMES}
    with tempfile.TemporaryDirectory(prefix="gpd-", dir="/var/tmp") as made:
        folder = Path(made)
        make_key_file(folder / "keys")
        for kind in KINDS:
            if kind == "sealed":
                os.environ[FILE_VARIABLE] = str(folder / "keys")
            for runtime in RUNTIMES:
                (folder / f"{kind}-{runtime}").mkdir()
                agent = LiveAgent(folder / f"{kind}-{runtime}", venv=ENGINE)
                try:
                    found[runtime][kind] = capture_twice(agent, runtime, megabytes)
                finally:
                    agent.close()
        os.environ.pop(FILE_VARIABLE, None)
    return found


def page(result: dict[str, Any]) -> list[str]:
    """What people read."""
    rows = []
    for runtime, kinds in result["runtimes"].items():
        for kind, case in kinds.items():
            first, second = case["snapshots"]
            rows.append(
                [
                    f"{runtime}, {kind}",
                    f"{first['bytes'] / 1e6:.0f} MB",
                    f"{first['deduplicated_bytes'] / 1e6:.0f} MB",
                    f"{second['bytes'] / 1e6:.0f} MB",
                    f"{second['deduplicated_bytes'] / 1e6:.0f} MB",
                    f"{case['share']:.0%}",
                ]
            )
    return [
        f"The second snapshot of a server with {result['megabytes']} MB of weights: {result['machine']}. "
        f"Budget: {WANTED_SHARE:.0%} of it was here.",
        "",
        *report.table(["", "first", "was here", "second", "was here", "share"], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    runtimes = measure(options.megabytes)
    result = {"machine": report.machine(), "megabytes": options.megabytes, "runtimes": runtimes}
    report.write(options.output, "dedup", result, page(result))
    shares = [case["share"] for kinds in runtimes.values() for case in kinds.values()]
    return int(min(shares) < WANTED_SHARE)


if __name__ == "__main__":
    raise SystemExit(main())
