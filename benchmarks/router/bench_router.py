"""What the router costs a warm request: wrk against a server directly and through the router, in turns.

    python benchmarks/router/bench_router.py [--seconds 5] [--rounds 3] [--connections 50] [--json FILE]

The router is the real one (``python -m glowplug.control``), the agent behind it is a stand-in with one
replica. Two measurements: latency with a server that thinks for 10 ms (an answer of a model takes longer),
where the difference of the quantiles is the router's overhead; and throughput with a server that does not
think, which is the router's own limit on this machine. Exits with 1 when the budgets of
docs/specification.md are missed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

HERE = Path(__file__).parent
BUDGET_P50_MS = 2.0
BUDGET_P99_MS = 10.0
START_TIMEOUT_S = 20.0
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Measurement:
    """One run of wrk."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    requests_per_s: float
    failures: int


@contextmanager
def running(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end."""
    process = subprocess.Popen([sys.executable, *command], text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def stack(think_ms: float) -> Iterator[tuple[str, str]]:
    """An upstream, a stand-in agent, a real control plane: the direct and the routed URL."""
    with ExitStack() as owned:
        state = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="gp-bench-")))
        upstream = owned.enter_context(
            running(str(HERE / "upstream.py"), "--think-ms", str(think_ms), stdout=subprocess.PIPE)
        )
        assert upstream.stdout is not None
        port = int(upstream.stdout.readline())
        agent_socket = state / "run" / "agent.sock"
        agent_socket.parent.mkdir()
        owned.enter_context(
            running(str(HERE / "agent.py"), "--socket", str(agent_socket), "--port", str(port))
        )
        log = owned.enter_context((state / "control.log").open("w+"))
        command = ("-m", "glowplug.control", "--state", str(state), "--port", "0")
        owned.enter_context(running(*command, stderr=log))
        router = f"http://127.0.0.1:{_wait_for_port(state / 'control.log')}"
        _deploy(router)
        yield f"http://127.0.0.1:{port}/", f"{router}/bench/web/"


def _wait_for_port(log: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = re.search(r"serving on \S+ port (\d+)", log.read_text())
        if found:
            return int(found.group(1))
        time.sleep(0.05)
    raise TimeoutError(f"the control plane did not start:\n{log.read_text()}")


def _deploy(router: str) -> None:
    server = {
        "name": "web",
        "image": {"kind": "directory", "path": "/"},
        "command": ["bench"],
        "scaling": {"target_concurrency": 10_000, "scaledown_window_s": 3600},
    }
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(base_url=router, trust_env=False, timeout=START_TIMEOUT_S) as client:
        while True:
            answer = client.post("/api/v1/deployments", json={"app": {"name": "bench", "servers": [server]}})
            if '"deployment":{' in answer.text:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"the deployment failed: {answer.text}")
            time.sleep(0.1)
        assert client.get("/bench/web/").text == "hello"


def wrk(url: str, connections: int, seconds: float) -> Measurement:
    """One run."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    quantiles = {
        int(percent): float(value) * _UNITS_MS[unit]
        for percent, value, unit in re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    }
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failures = int(failed.group(1)) if failed else 0
    failures += sum(map(int, broken.groups())) if broken else 0
    return Measurement(quantiles[50], quantiles[90], quantiles[99], float(rate.group(1)), failures)


def alternate(think_ms: float, options: argparse.Namespace) -> tuple[list[Measurement], list[Measurement]]:
    """Direct, through, direct, through ...: what else happens on the machine hits both alike."""
    direct: list[Measurement] = []
    through: list[Measurement] = []
    with stack(think_ms) as (direct_url, routed_url):
        for url in (direct_url, routed_url):
            wrk(url, options.connections, 1)
        for _ in range(options.rounds):
            direct.append(wrk(direct_url, options.connections, options.seconds))
            through.append(wrk(routed_url, options.connections, options.seconds))
    return direct, through


def median(runs: list[Measurement], field: str) -> float:
    """The middle run's value."""
    return statistics.median(getattr(run, field) for run in runs)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="length of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--think-ms", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()

    direct, through = alternate(options.think_ms, options)
    print(
        f"{options.connections} connections, server thinks {options.think_ms:g} ms, "
        f"median of {options.rounds}"
    )
    print(f"{'':10}{'direct':>10}{'through':>10}{'overhead':>10}   (ms)")
    overhead = {}
    for quantile in ("p50", "p90", "p99"):
        field = f"{quantile}_ms"
        before, after = median(direct, field), median(through, field)
        overhead[field] = after - before
        print(f"{quantile:10}{before:10.2f}{after:10.2f}{after - before:10.2f}")
    print(
        f"{'requests/s':10}{median(direct, 'requests_per_s'):10.0f}{median(through, 'requests_per_s'):10.0f}"
    )
    quick_direct, quick_through = alternate(0, options)
    print("saturated (server does not think)")
    print(
        f"{'requests/s':10}{median(quick_direct, 'requests_per_s'):10.0f}"
        f"{median(quick_through, 'requests_per_s'):10.0f}"
    )
    runs = {
        "direct": direct,
        "through": through,
        "saturated_direct": quick_direct,
        "saturated_through": quick_through,
    }
    failures = sum(run.failures for kind in runs.values() for run in kind)
    is_good = overhead["p50_ms"] <= BUDGET_P50_MS and overhead["p99_ms"] <= BUDGET_P99_MS and not failures
    print(f"failures: {failures}; budgets p50 <= {BUDGET_P50_MS} ms, p99 <= {BUDGET_P99_MS} ms: ", end="")
    print("kept" if is_good else "MISSED")
    if options.json is not None:
        result = {
            "connections": options.connections,
            "think_ms": options.think_ms,
            "overhead": overhead,
            "failures": failures,
            "runs": {kind: [asdict(run) for run in measured] for kind, measured in runs.items()},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
