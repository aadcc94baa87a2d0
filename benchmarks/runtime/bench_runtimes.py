"""The two runtimes side by side: from nothing, or from a memory image, to a first right answer.

Two small Python servers, one of them with 300 MB of memory, in real sandboxes, without the agent. In turns,
so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import report
from tests.runtime.conftest import OrphanReaper
from tests.runtime.sandboxes import COUNTER, Sandboxes, ask

from glowplug.runtime.port import Sandbox
from glowplug.runtime.runc import Runc
from glowplug.runtime.runsc import Runsc

MEMORY_BYTES = 1 << 30
PATIENCE_S = 60.0
_IMPORTS = (
    "import asyncio, concurrent.futures, decimal, email, http.server, json, multiprocessing, sqlite3, ssl\n"
    "import unittest, xml.etree.ElementTree\n"
)
SERVERS = {
    "light": _IMPORTS + COUNTER,
    "300 MB": f"import os\nblock = bytearray(os.urandom(1 << 20)) * 300\n{_IMPORTS}{COUNTER}",
}
_CRIU_TIME = re.compile(r"^\((\d+\.\d+)\)", re.MULTILINE)

Times = dict[str, list[float]]


def measure(sandboxes: Sandboxes, name: str, program: str, folder: Path, times: Times) -> None:
    """One cold start, one capture of it, and two restores: image in the page cache, and caches dropped."""

    def note(what: str, since_s: float) -> None:
        times.setdefault(what, []).append(time.monotonic() - since_s)

    started_s = time.monotonic()
    cold, _ = sandboxes.run("python3", "-c", program, memory_bytes=MEMORY_BYTES)
    wait_for_answer(cold)
    note("cold start", started_s)
    image = folder / "image"
    image.mkdir()
    started_s = time.monotonic()
    sandboxes.runtime.checkpoint(cold.id, image)
    note("checkpoint", started_s)
    sandboxes.runtime.delete(cold.id)
    for caches in ("image in page cache", "caches dropped"):
        copy = sandboxes.describe(*cold.args, memory_bytes=MEMORY_BYTES)
        os.sync()
        if caches == "caches dropped":
            Path("/proc/sys/vm/drop_caches").write_text("3")
        started_s = time.monotonic()
        sandboxes.runtime.restore(copy, image)
        sandboxes.open_gateway(copy)
        wait_for_answer(copy)
        note(f"restore, {caches}", started_s)
        if name == "runc":
            log = folder.parent / "runc-state" / "sandboxes" / copy.id / "restore.log"
            times.setdefault(f"of it CRIU, {caches}", []).append(
                float(_CRIU_TIME.findall(log.read_text())[-1])
            )
        sandboxes.runtime.delete(copy.id)
    shutil.rmtree(image)


def wait_for_answer(sandbox: Sandbox) -> None:
    """Return once the server answers. Raises TimeoutError."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not ask(sandbox):
        if time.monotonic() >= deadline_s:
            raise TimeoutError(f"{sandbox.id} does not answer")
        time.sleep(0.002)


def page(machine: dict[str, object], runs: int, found: dict[str, Times]) -> list[str]:
    """What people read."""
    rows = [
        [case, what, f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"]
        for case, all_times in found.items()
        for what, times in all_times.items()
    ]
    return [
        f"Runtimes: {machine}, {runs} runs, median (least-most), s",
        "",
        *report.table(["case", "", "s"], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    machine = report.machine()
    found: dict[str, Times] = {}
    with OrphanReaper(), tempfile.TemporaryDirectory(prefix="gpb-", dir="/var/tmp") as made:
        folder = Path(made)
        runtimes = {"runsc": Runsc(folder / "runsc-state"), "runc": Runc(folder / "runc-state")}
        for name in runtimes:
            (folder / name).mkdir()
        benches = {name: Sandboxes(folder / name, runtime) for name, runtime in runtimes.items()}
        try:
            for number in range(options.runs):
                for server, program in SERVERS.items():
                    for name in list(benches)[:: 1 if number % 2 else -1]:
                        times = found.setdefault(f"{name}, {server}", {})
                        measure(benches[name], name, program, folder / name, times)
        finally:
            for bench in benches.values():
                bench.remove_all()
    result = {"machine": machine, "runs": options.runs, "samples_s": found}
    report.write(options.output, "runtimes", result, page(machine, options.runs, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
