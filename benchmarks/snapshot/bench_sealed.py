"""What encryption at rest costs a restore and a capture: nodes with and without keys, in turns.

    .venv/bin/python benchmarks/snapshot/bench_sealed.py --runs 9

A server of 300 MB, from the order to start a copy until its canary was answered and every byte verified, with
the snapshot in page cache and with caches dropped; and the rates of sealing and opening alone. Budget:
a sealed restore takes at most 1.5 x a plain one (exit code 1 when missed). Writes sealed.json and .md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import report
from bench_restore import MEMORY_BYTES, RUNTIMES, SERVER
from tests.node.cases import captured
from tests.node.live_agent import LiveAgent

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.snapshot.sealing.cipher import TAG_BYTES, Sealer
from glowplug.snapshot.sealing.files import open_files, seal_file
from glowplug.snapshot.sealing.keys import FILE_VARIABLE, SealingKey, make_key_file
from glowplug.snapshot.sealing.memory_folder import memory_folder
from glowplug.snapshot.sealing.table import sealed_name

WANTED_FACTOR = 1.5
KINDS = ("plain", "sealed")
CACHES = ("warm", "dropped")


class Case:
    """One server on one node; seconds of its restores."""

    def __init__(self, agent: LiveAgent, runtime: str, megabytes: int) -> None:
        self.agent = agent
        self.server = agent.server(
            *("python3", "-c", SERVER.format(megabytes=megabytes)),
            name=f"restored-{runtime}",
            runtime=runtime,
            snapshot={},
            resources={"memory_bytes": MEMORY_BYTES},
        )
        self.snapshot = captured(agent, self.server)
        self.restore()

    def restore(self) -> tuple[float, dict[str, float]]:
        """Seconds in all, and by stage."""
        view = self.agent.start(self.server)
        assert view["path"] == "cpu_snapshot", view
        self.agent.stop(view["id"], grace_s=0)
        return view["ready_at"] - view["created_at"], view["stages_s"]


def measure_restores(runs: int, megabytes: int) -> dict[str, Any]:
    """``{runtime: {kind: {warm, dropped, stages, capture_s, frozen_s, bytes}}}``."""
    with tempfile.TemporaryDirectory(prefix="gps-", dir="/var/tmp") as made:
        folder = Path(made)
        make_key_file(folder / "keys")
        agents: dict[str, LiveAgent] = {}
        try:
            for kind in KINDS:
                (folder / kind).mkdir()
                if kind == "sealed":
                    os.environ[FILE_VARIABLE] = str(folder / "keys")
                agents[kind] = LiveAgent(folder / kind)
            cases = {
                (runtime, kind): Case(agents[kind], runtime, megabytes)
                for runtime in RUNTIMES
                for kind in KINDS
            }
            found: dict[str, Any] = {
                runtime: {kind: {"warm": [], "dropped": [], "stages": []} for kind in KINDS}
                for runtime in RUNTIMES
            }
            for caches in CACHES:
                for _ in range(runs):
                    for (runtime, kind), case in cases.items():
                        if caches == "dropped":
                            os.sync()
                            Path("/proc/sys/vm/drop_caches").write_text("3")
                        seconds, stages = case.restore()
                        found[runtime][kind][caches].append(seconds)
                        found[runtime][kind]["stages"].append({"caches": caches, **stages})
            for (runtime, kind), case in cases.items():
                about = ("bytes", "capture_s", "frozen_s", "sealed_with")
                found[runtime][kind] |= {name: case.snapshot[name] for name in about}
        finally:
            os.environ.pop(FILE_VARIABLE, None)
            for agent in agents.values():
                agent.close()
    return found


def measure_rates(megabytes: int, rounds: int = 5) -> dict[str, float]:
    """GB/s: the cipher alone on one core, then whole files between page cache and memory, all cores."""
    key = SealingKey.generate()
    sealer, body = Sealer(key, "chunk"), os.urandom(CHUNK_BYTES)
    sealed, plain = bytearray(CHUNK_BYTES + TAG_BYTES), bytearray(CHUNK_BYTES)
    seal = sealer.seal(body, sealed)
    rates = {
        "sealing, one core": _rate(
            CHUNK_BYTES * 200, rounds, lambda: [sealer.seal(body, sealed) for _ in range(200)]
        ),
        "opening, one core": _rate(
            CHUNK_BYTES * 200,
            rounds,
            lambda: [sealer.open(sealed, CHUNK_BYTES, seal, plain) for _ in range(200)],
        ),
    }
    with tempfile.TemporaryDirectory(prefix="gps-", dir="/var/tmp") as made:
        source = Path(made) / "source"
        source.mkdir()
        path = source / sealed_name(0)
        with path.open("wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(CHUNK_BYTES))
        started = time.perf_counter()
        file_seals = seal_file(path, "pages.img", key)
        rates["sealing a file in page cache"] = (megabytes << 20) / (time.perf_counter() - started) / 1e9
        best_s = float("inf")
        for _ in range(rounds):
            with memory_folder(Path(made), megabytes << 20, "The benchmark") as target:
                started = time.perf_counter()
                open_files(source, [file_seals], target, key)
                best_s = min(best_s, time.perf_counter() - started)
        rates["opening a file from page cache into memory, all cores"] = (megabytes << 20) / best_s / 1e9
    return rates


def _rate(size_bytes: int, rounds: int, work: Callable[[], object]) -> float:
    """GB/s of the best round: the machine is shared."""
    best_s = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started)
    return size_bytes / best_s / 1e9


def page(result: dict[str, Any]) -> list[str]:
    """What people read."""
    rows = []
    for runtime, kinds in result["runtimes"].items():
        for caches in CACHES:
            rows.append(
                [
                    f"{runtime}, {caches}",
                    *(report.spread(kinds[kind][caches]) for kind in KINDS),
                    f"{result['factors'][runtime][caches]:.2f}",
                ]
            )
        rows.append(
            [f"{runtime}, frozen at capture", *(f"{kinds[kind]['frozen_s']:.2f}" for kind in KINDS), ""]
        )
    rates = [[what, f"{rate:.2f} GB/s"] for what, rate in result["rates_gb_per_s"].items()]
    return [
        f"Sealed restores: {result['machine']}, {result['runs']} runs, median (least-most) in s. "
        f"Budget: factor {WANTED_FACTOR}.",
        "",
        *report.table(["", *KINDS, "factor"], rows),
        "",
        *report.table(["", "rate"], rates),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    machine = report.machine()
    rates = measure_rates(options.megabytes)
    runtimes = measure_restores(options.runs, options.megabytes)
    factors = {
        runtime: {
            caches: statistics.median(kinds["sealed"][caches]) / statistics.median(kinds["plain"][caches])
            for caches in CACHES
        }
        for runtime, kinds in runtimes.items()
    }
    result = {
        "machine": machine,
        "runs": options.runs,
        "rates_gb_per_s": rates,
        "runtimes": runtimes,
        "factors": factors,
    }
    report.write(options.output, "sealed", result, page(result))
    return int(
        max(factor for of_runtime in factors.values() for factor in of_runtime.values()) > WANTED_FACTOR
    )


if __name__ == "__main__":
    raise SystemExit(main())
