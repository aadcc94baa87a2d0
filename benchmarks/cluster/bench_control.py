"""What a control plane costs as a cluster grows: 1 to 100 nodes, 100 replicas on each.

    .venv/bin/python benchmarks/cluster/bench_control.py [--nodes 1 4 16 64 100] [--per-node 100]

The control plane is the real one, in a process of its own; nodes are simulated in another, and speak the real
protocol (``simulated_node.py``). For each size it is measured

- how long the last of the nodes takes to join, until it is ready;
- how long it takes to place and start all replicas, because servers want so many at least;
- at rest: processor time and memory of the control plane, and the latency of a warm request through it, which
  says whether anything in that process keeps requests waiting;
- a decision: from a request's arrival for a server at zero until the control plane has chosen a node (its own
  cold-start record), and until that node has read the order (the clock of this machine);
- what ``glowplug status`` and ``glowplug ps`` ask for; and a restart after SIGKILL, until it knows of all.

Writes control.json (all samples) and control.md; exit code 1 when a decision's p99 at the largest size, where
that is 100 nodes, is over the promise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx
import report
from simulated_node import SimulatedNode, holdings
from tests.control.conftest import app_spec, server_spec, state_directory
from tests.control.control_process import Process, control_process

from glowplug.observe.quantiles import quantile
from glowplug.types.errors import DeadlineExceeded, RuntimeFailed
from glowplug.types.paths import StateDir
from glowplug.types.replica import Stage

WANTED_MS = 20.0
WANTED_NODES = 100
OWN = "own"
COPIES = 50
"""Replicas of each server that runs."""
SERVERS_PER_APP = 20
WARM_REQUESTS = 300
WARM_PAUSE_S = 0.01
DECISION_PAUSE_S = 0.02
_DEADLINE_S = 900.0
_POLL_S = 0.05
_SLOW_POLL_S = 0.25
"""Between looks at everything, which cost the control plane something themselves."""


@dataclass
class Size:
    """What was measured with so many nodes and replicas. Milliseconds and seconds are samples."""

    nodes: int
    replicas: int
    join_s: float = 0.0
    started_s: float = 0.0
    rest_cpu_percent: float = 0.0
    memory_mb: float = 0.0
    warm_ms: list[float] = field(default_factory=list)
    decided_ms: list[float] = field(default_factory=list)
    ordered_ms: list[float] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    status_ms: list[float] = field(default_factory=list)
    heat_ms: list[float] = field(default_factory=list)
    replicas_ms: list[float] = field(default_factory=list)
    restart_s: float = 0.0
    restart_cpu_s: float = 0.0


class Cluster:
    """A control plane, its nodes, and the servers that they have."""

    def __init__(self, state: StateDir, size: Size, options: argparse.Namespace) -> None:
        self.state = state
        self.size = size
        running = [f"run{n}" for n in range(max(size.replicas // COPIES, 1))]
        resting = [f"zero{n}" for n in range(options.decisions + options.resting)]
        self.running = _apps("runs", running)
        self.resting = _apps("rests", resting)
        servers = [f"{app}/{server}" for app, names in self.resting.items() for server in names]
        self.held = holdings(servers, options.held)
        self.own = SimulatedNode(OWN, self.held)
        self.nodes = [SimulatedNode(f"node-{n:03}", self.held) for n in range(size.nodes)]

    async def deploy(self, client: httpx.AsyncClient) -> None:
        """All servers; those that run want all their replicas at once, so nodes must be there."""
        copies = self.size.replicas // sum(len(names) for names in self.running.values())
        for app, names in self.resting.items():
            await _deploy(client, app, [server_spec(n, scaling=_scaling(0, 1)) for n in names])
        for app, names in self.running.items():
            await _deploy(client, app, [server_spec(n, scaling=_scaling(copies, copies)) for n in names])

    async def join(self, client: httpx.AsyncClient, control_url: str, folder: Path) -> None:
        """All nodes, one after the other; the last one is timed."""
        token = (await client.post("/api/v1/join-tokens")).json()["token"]
        for number, node in enumerate(self.nodes):
            state = StateDir(folder / node.name)
            state.create()
            began_s = time.monotonic()
            await node.join(client, token, state, control_url)
            if number == len(self.nodes) - 1:
                await until(lambda: _are_ready(client, len(self.nodes)), "all nodes to be ready")
                self.size.join_s = time.monotonic() - began_s

    def close(self) -> None:
        for node in (self.own, *self.nodes):
            node.close()


def _apps(word: str, servers: list[str]) -> dict[str, list[str]]:
    cuts = range(0, len(servers), SERVERS_PER_APP)
    return {f"{word}{cut // SERVERS_PER_APP}": servers[cut : cut + SERVERS_PER_APP] for cut in cuts}


def _scaling(least: int, most: int) -> dict[str, Any]:
    return {"min_replicas": least, "max_replicas": most, "scaledown_window_s": 3600.0}


async def _deploy(client: httpx.AsyncClient, app: str, servers: list[dict[str, Any]]) -> None:
    answer = await client.post("/api/v1/deployments", json={"app": app_spec(*servers, name=app)})
    if '"error":null}' not in answer.text.splitlines()[-1]:
        raise RuntimeFailed(f"{app} was not deployed: {answer.text[-500:]}")


async def until(is_met: Callable[[], Awaitable[bool]], what: str, poll_s: float = _POLL_S) -> None:
    """Raises DeadlineExceeded."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while not await is_met():
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded(f"Waited {_DEADLINE_S:g} s for {what}.", stage="benchmark")
        await asyncio.sleep(poll_s)


async def _are_ready(client: httpx.AsyncClient, count: int) -> bool:
    listed = (await client.get("/api/v1/nodes")).json()
    return sum(1 for node in listed if node["state"] == "ready") >= count


async def _ready_replicas(client: httpx.AsyncClient) -> int:
    status = (await client.get("/api/v1/status")).json()
    return sum(server["ready"] for app in status["apps"] for server in app["servers"])


def processor_s(process: Process) -> float:
    """Processor time of the control plane so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running(state: StateDir) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """A control plane and a client of it."""
    async with (
        control_process(state, "--port", "0") as process,
        httpx.AsyncClient(base_url=process.url, timeout=_DEADLINE_S, trust_env=False) as client,
    ):
        yield process, client


async def measure(size: Size, options: argparse.Namespace) -> None:
    """Fill in what there is to know of this size."""
    with state_directory() as state, state_directory() as folder:
        cluster = Cluster(state, size, options)
        await cluster.own.open_agent(state.agent_socket)
        try:
            async with running(state) as (process, client):
                await until(lambda: _are_ready(client, 1), "the control plane's own node")
                await client.post(f"/api/v1/nodes/{os.uname().nodename}/drain")
                await cluster.join(client, process.url, folder.root)
                began_s = time.monotonic()
                await cluster.deploy(client)
                await until(_has_all(client, size.replicas), f"{size.replicas} replicas", _SLOW_POLL_S)
                size.started_s = time.monotonic() - began_s
                await _rest(cluster, process, client, options.rest_s)
                await _decide(cluster, client, options.decisions)
                size.status_ms = [await _took_ms(client, "/api/v1/status") for _ in range(5)]
                size.heat_ms = [await _took_ms(client, "/api/v1/status?heat=true") for _ in range(3)]
                size.replicas_ms = [await _took_ms(client, "/api/v1/replicas") for _ in range(3)]
                known = await _ready_replicas(client)
            began_s = time.monotonic()
            async with running(state) as (process, client):
                await until(_has_all(client, known), "the next one to know all replicas", _SLOW_POLL_S)
                size.restart_s = time.monotonic() - began_s
                size.restart_cpu_s = processor_s(process)
        finally:
            cluster.close()


def _has_all(client: httpx.AsyncClient, replicas: int) -> Callable[[], Awaitable[bool]]:
    async def has_all() -> bool:
        return await _ready_replicas(client) >= replicas

    return has_all


async def _rest(cluster: Cluster, process: Process, client: httpx.AsyncClient, rest_s: float) -> None:
    size = cluster.size
    await asyncio.sleep(1.0)
    began_s, used_s = time.monotonic(), processor_s(process)
    await asyncio.sleep(rest_s)
    size.rest_cpu_percent = 100 * (processor_s(process) - used_s) / (time.monotonic() - began_s)
    size.memory_mb = process.memory_bytes() / 1e6
    app, servers = next(iter(cluster.running.items()))
    for _ in range(WARM_REQUESTS):
        size.warm_ms.append(await _took_ms(client, f"/{app}/{servers[0]}/"))
        await asyncio.sleep(WARM_PAUSE_S)


async def _decide(cluster: Cluster, client: httpx.AsyncClient, count: int) -> None:
    size = cluster.size
    asked = [f"{app}/{server}" for app, names in cluster.resting.items() for server in names][:count]
    for name in asked:
        began_s = time.monotonic()
        size.answered_ms.append(await _took_ms(client, f"/{name}/"))
        ordered_s = next(node.asked_at_s[name] for node in cluster.nodes if name in node.asked_at_s)
        size.ordered_ms.append(1000 * (ordered_s - began_s))
        await asyncio.sleep(DECISION_PAUSE_S)
    records = (await client.get("/api/v1/coldstarts", params={"limit": 10_000})).json()
    found = {f"{record['app']}/{record['server']}": record["stages_s"] for record in records}
    size.decided_ms = [1000 * found[name][Stage.ALLOCATE] for name in asked]


async def _took_ms(client: httpx.AsyncClient, path: str) -> float:
    began_s = time.monotonic()
    answer = await client.get(path)
    took_s = time.monotonic() - began_s
    answer.raise_for_status()
    return 1000 * took_s


def _row(size: Size) -> list[object]:
    def told(values: list[float], *quantiles: float) -> str:
        return " / ".join(f"{quantile(sorted(values), q):.1f}" for q in quantiles)

    return [
        size.nodes,
        size.replicas,
        f"{size.join_s:.2f} s",
        f"{size.started_s:.1f} s",
        f"{size.rest_cpu_percent:.1f} %",
        f"{size.memory_mb:.0f} MB",
        told(size.warm_ms, 0.5, 0.99),
        told(size.decided_ms, 0.5, 0.99),
        told(size.ordered_ms, 0.5, 0.99),
        told(size.answered_ms, 0.5, 0.99),
        told(size.status_ms, 0.5),
        told(size.heat_ms, 0.5),
        told(size.replicas_ms, 0.5),
        f"{size.restart_s:.1f} s",
    ]


_HEADER = (
    "nodes", "replicas", "the last joins", "all started", "CPU at rest", "memory", "warm request p50 / p99",
    "decided p50 / p99", "ordered p50 / p99", "answered p50 / p99", "status", "status with heat",
    "list of replicas", "restart",
)  # fmt: skip


def write(output: Path, sizes: list[Size], machine: dict[str, Any]) -> bool:
    """The page, and whether the promise was kept."""
    last = sizes[-1]
    p99_ms = quantile(sorted(last.decided_ms), 0.99)
    is_judged = last.nodes >= WANTED_NODES
    verdict = "kept" if p99_ms <= WANTED_MS else "MISSED"
    lines = [
        "# The control plane as a cluster grows", "", *report.table(_HEADER, list(map(_row, sizes))), "",
        f"Milliseconds where nothing else is said; {len(last.decided_ms)} decisions, {WARM_REQUESTS} warm "
        "requests each.", "",
        f"Decided at {last.nodes} nodes and {last.replicas} replicas: p99 {p99_ms:.1f} ms, promised at "
        f"{WANTED_NODES}: {WANTED_MS:g} ms: {verdict if is_judged else 'not judged'}.",
    ]  # fmt: skip
    result = {"machine": machine, "wanted_ms": WANTED_MS, "sizes": [asdict(size) for size in sizes]}
    report.write(output, "control", result, lines)
    return not is_judged or p99_ms <= WANTED_MS


def main() -> int:
    """Exit code 1 when the promise is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16, 64, 100])
    parser.add_argument("--per-node", type=int, default=100, help="replicas on each")
    parser.add_argument("--decisions", type=int, default=300, help="starts from zero at each size")
    parser.add_argument("--resting", type=int, default=100, help="further servers at zero")
    parser.add_argument("--held", type=int, default=256, help="snapshots, and images, on each node")
    parser.add_argument("--rest-s", type=float, default=5.0, help="how long to look at it at rest")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # every node has its connections
    machine = report.machine()
    sizes = []
    for nodes in options.nodes:
        size = Size(nodes, nodes * options.per_node)
        asyncio.run(measure(size, options))
        sizes.append(size)
        print(f"  {nodes} nodes: {dict(zip(_HEADER, _row(size), strict=True))}", flush=True)
    return 0 if write(options.output, sizes, machine) else 1


if __name__ == "__main__":
    sys.exit(main())
