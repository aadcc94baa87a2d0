"""A cluster of real nodes on one machine: joining, starting elsewhere, routing there, a burst from zero.

    .venv/bin/python benchmarks/cluster/bench_nodes.py [--nodes 4] [--burst 100] [--runtime runc]

Nodes are network namespaces on a bridge: real agents and gateways, which joined with ``glowplug cluster
join``, each with a state directory of its own. The region is a folder behind HTTP with latency, and an nginx
zone cache stands before it; the first machine writes to the folder. Measured are

- a join, until the node is ready;
- the first answer of a server at zero, restored on the machine that captured it, and on another node that has
  nothing of it while a snapshot is in the zone; the same once that node has it;
- a warm request through the router to a replica on another node, beside the same one asked directly;
- from zero to many replicas over all nodes at once, whose image and snapshot are new there: how long, how
  spread, and what the region was asked for.

Writes nodes.json (all samples) and nodes.md; exit code 1 when a promise is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx
import report
from delayed_store import DelayedStore, serving
from native_tools import NativeTools
from nodes_page import Burst, Results, page
from tests.e2e.bridge import Bridge, BridgedMachine, a_bridge, bridged_machines
from tests.e2e.cluster import wait_for_state
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.image_root import make_python_root
from tests.e2e.live import Live
from tests.ports import free_port

from glowplug.chunks.zone_cache import ZoneCache
from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.types.errors import RuntimeFailed
from glowplug.types.replica import ReplicaView

ROOT = Path(__file__).resolve().parents[2]
OWN = socket.gethostname()
IMAGE = "root:1"
REQUESTS = 50
BLOCKS = 6
LATENCY_MS = 2.0
ZONE_BYTES = 4 << 30
LIGHT = {"memory": "64MiB", "cpus": 0.1, "parked_window_s": 0}
_DEADLINE_S = 300.0


class Bench:
    """A running cluster, and what is done with it."""

    def __init__(
        self,
        live: Live,
        apps: Apps,
        machines: list[BridgedMachine],
        store: DelayedStore,
        region: Path,
        runtime: str,
    ) -> None:
        self.live = live
        self.apps = apps
        self.machines = machines
        self.store = store
        self.region = region
        self.runtime = runtime
        self.results = Results()

    def join(self) -> None:
        """All machines, one after the other."""
        for machine in self.machines:
            began_s = time.monotonic()
            machine.join()
            wait_for_state(self.live, machine.name, "ready")
            self.results.joins_s.append(time.monotonic() - began_s)

    def warm(self) -> None:
        """Every node knows the image, and has started something."""
        app = self.deploy("warm", 0, snapshot=False)
        for name in (OWN, *(machine.name for machine in self.machines)):
            self.only(name)
            app.ask("/who")
            self.live.rest(app.name)

    def only(self, *names: str) -> None:
        """New replicas go to these nodes."""
        for name in (OWN, *(machine.name for machine in self.machines)):
            verb = "undrain" if name in names else "drain"
            self.live.http.post(f"/api/v1/nodes/{name}/{verb}").raise_for_status()

    def deploy(self, word: str, number: int, **options: Any) -> Deployed:
        """A light server whose snapshot no other server has."""
        env = {"BENCH_ROUND": f"{word}-{number}"}
        return self.apps.deploy(word=word, image=IMAGE, runtime=self.runtime, env=env, **LIGHT, **options)

    def captured(self, word: str, number: int, **options: Any) -> Deployed:
        """The same, at rest, with its snapshot in the region."""
        app = self.deploy(word, number, **options)
        self.only(OWN)
        app.ask("/who")
        self.live.wait_for_snapshot(app.name)
        self.live.wait_for(
            lambda: any(view.is_in_region for view in self.live.snapshots(app.name)), "it is in the region"
        )
        self.live.rest(app.name)
        return app

    def restored_s(self, app: Deployed) -> float:
        """One start from zero, until the whole answer; at rest again afterwards."""
        began_s = time.monotonic()
        answer = app.ask("/who")
        took_s = time.monotonic() - began_s
        record = self.live.cold_starts(app.name)[0]
        if not answer["restored"]:
            raise RuntimeFailed(f"on {record.node}: {record.fallback_reason}")
        stages = " ".join(f"{stage.value} {seconds:.2f}" for stage, seconds in record.stages_s.items())
        print(f"  {record.node}: {took_s:.3f} s  {stages}  {dict(record.bytes_by_tier)}", flush=True)
        self.live.rest(app.name)
        return took_s

    def near_and_far(self, rounds: int) -> None:
        """Each round is another snapshot, so that it is new to every node; the first fills the zone."""
        for number in range(rounds):
            app = self.captured("near", number)
            self.results.local_s += [self.restored_s(app) for _ in self.machines]
            for machine in self.machines:
                self.only(machine.name)
                first_s = self.restored_s(app)
                if machine is not self.machines[0]:
                    self.results.remote_s.append(first_s)
                self.results.again_s.append(self.restored_s(app))

    def route(self) -> None:
        """Directly and through the router in turns: what else happens on the machine hits both alike."""
        found = self.results
        for name, direct_ms, routed_ms in (
            (self.machines[-1].name, found.direct_ms, found.routed_ms),
            (OWN, found.own_direct_ms, found.own_routed_ms),
        ):
            self.only(name)
            app = self.deploy("route", len(direct_ms), snapshot=False, min_replicas=1)
            view = self.live.wait_for(lambda app=app: self.live.ready(app.name), "a replica")[0]
            app.ask("/who")
            port = int(self.live.url.rpartition(":")[2])
            with _directly(view) as direct, _connected("127.0.0.1", port) as routed:
                for _ in range(BLOCKS):
                    direct_ms += [_asked_ms(direct, "/") for _ in range(REQUESTS)]
                    routed_ms += [_asked_ms(routed, f"{app.path}/") for _ in range(REQUESTS)]
            self.live.remove({app.name})

    def burst(self, replicas: int) -> None:
        """As many callers at once as there may be replicas; image and snapshot are new to every node."""
        app = self.captured(
            "burst", 0, max_replicas=replicas, target_concurrency=1, scaledown_window_s=_DEADLINE_S
        )
        self.only(*(machine.name for machine in self.machines))
        result = self.results.burst = Burst(replicas)
        result.stored_bytes = sum(file.stat().st_size for file in self.region.rglob("*") if file.is_file())
        before = self.store.counts()
        asyncio.run(self._burst(app, result))
        views = self.live.replicas(app.name)
        result.region_bytes = self.store.counts().since(before).bytes
        result.by_node = dict(Counter(view.node or OWN for view in views))
        tiers: Counter[str] = Counter()
        for view in views:
            tiers.update(view.image_bytes_by_tier)
            tiers.update(view.snapshot_bytes_by_tier)
        result.by_tier = dict(tiers)
        self.live.remove({app.name})

    async def _burst(self, app: Deployed, result: Burst) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.live.url, timeout=_DEADLINE_S, limits=limits, trust_env=False
        ) as client:
            began_s = time.monotonic()
            callers = [
                asyncio.create_task(client.get(f"{app.path}/slow", params={"seconds": 2, "caller": n}))
                for n in range(result.replicas)
            ]
            ready = 0
            while ready < result.replicas and time.monotonic() < began_s + _DEADLINE_S:
                await asyncio.sleep(0.1)
                status = (await client.get("/api/v1/status")).json()
                [ready] = [s["ready"] for a in status["apps"] if a["name"] == app.name for s in a["servers"]]
                if not result.half_ready_s and ready >= result.replicas / 2:
                    result.half_ready_s = time.monotonic() - began_s
            result.all_ready_s = time.monotonic() - began_s
            answers = await asyncio.gather(*callers)
            result.statuses = dict(Counter(answer.status_code for answer in answers))
            if ready < result.replicas or set(result.statuses) != {200}:
                raise RuntimeFailed(f"{ready} replicas were ready, and callers got {result.statuses}")


@contextmanager
def _connected(host: str, port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _directly(view: ReplicaView) -> Iterator[http.client.HTTPConnection]:
    """A connection that begins in the replica's own network."""
    assert view.endpoint is not None
    address = (view.endpoint.host, view.endpoint.port)
    with NamespaceSockets(view.endpoint.netns) as sockets, _connected(*address) as connection:
        connection.sock = sockets.open(socket.AF_INET)
        connection.sock.settimeout(30)
        connection.sock.connect(address)
        yield connection


def _asked_ms(connection: http.client.HTTPConnection, path: str) -> float:
    began_s = time.monotonic()
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    took_s = time.monotonic() - began_s
    if answer.status != 200:
        raise RuntimeFailed(f"{path}: status {answer.status}")
    return 1000 * took_s


@contextmanager
def _zone_cache(store: DelayedStore, bridge: Bridge, folder: Path) -> Iterator[str]:
    cache = ZoneCache(store.url, f"{bridge.address}:{free_port()}", folder, ZONE_BYTES)
    cache.up()
    try:
        yield f"http://{cache.status().listen}"
    finally:
        cache.down()


@contextmanager
def cluster(options: argparse.Namespace) -> Iterator[Bench]:
    """All of it, until the end of the block."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gp-nodes-", dir="/var/tmp")))
        folder.chmod(0o755)  # nginx's workers are another user's
        for name in ("region", "zone", "apps"):
            (folder / name).mkdir()
        region = folder / "region"
        live = held.enter_context(
            Live(
                host="0.0.0.0",
                GLOWPLUG_REGION=str(region),
                GLOWPLUG_ZONE="",
                GLOWPLUG_SHARE_SNAPSHOTS="push",
            )
        )
        bridge = held.enter_context(a_bridge())
        tools = NativeTools(ROOT / "build" / "native")
        store = held.enter_context(serving(tools, region, LATENCY_MS, host=bridge.address))
        zone = held.enter_context(_zone_cache(store, bridge, folder / "zone"))
        names = [f"n{number}" for number in range(1, options.nodes + 1)]
        machines = held.enter_context(
            bridged_machines(
                live,
                bridge,
                names,
                GLOWPLUG_REGION=store.url,
                GLOWPLUG_ZONE=zone,
                GLOWPLUG_SHARE_SNAPSHOTS="pull",
            )
        )
        live.cli("image", "import", str(make_python_root(folder / "root")), IMAGE)
        live.cli("image", "push", IMAGE)
        apps = Apps(live, folder / "apps")
        held.callback(lambda: live.remove(apps.names))
        yield Bench(live, apps, machines, store, region, options.runtime)


def main() -> int:
    """Exit code 1 when a promise is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument(
        "--rounds", type=int, default=3, help="snapshots that are new to every node; 0: joins and burst only"
    )
    parser.add_argument("--burst", type=int, default=100, help="replicas; 0 leaves the burst out")
    parser.add_argument("--runtime", choices=("runsc", "runc"), default="runc")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    machine = report.machine()
    with cluster(options) as bench:
        bench.join()
        if options.burst:  # first, as nodes must not know the image
            bench.burst(options.burst)
        else:
            bench.warm()
        if options.rounds:
            bench.near_and_far(options.rounds)
            bench.route()
    lines, is_kept = page(bench.results, machine, options)
    report.write(options.output, "nodes", {"machine": machine, **asdict(bench.results)}, lines)
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
