"""A replica's network namespace, from nothing to an open gateway: from stock, made now, and by ``ip netns``.

    .venv/bin/python benchmarks/runtime/bench_network.py --runs 20

Wall time in ms, least and median, and processor time of everything that was run for it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence

from glowplug.runtime.network import ReplicaNetwork, SpareNetworks

_ADDRESS = "10.99.0.1/30"


def by_ip(name: str) -> None:
    """As it was done before: three runs of ``ip``."""
    setup = """link add eth0 type veth peer name gw0
        addr add 10.99.0.2/30 dev eth0
        link set eth0 up
        link set gw0 up
    """
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=setup, text=True, check=True)
    subprocess.run(["ip", "-n", name, "addr", "replace", _ADDRESS, "dev", "gw0"], check=True)


def _processor_s() -> float:
    times = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in times)


def measure(what: str, make: Callable[[ReplicaNetwork], None], runs: int) -> None:
    """Make, and remove, one after the other."""
    seconds: list[float] = []
    processor_s = 0.0
    for index in range(runs):
        network = ReplicaNetwork(f"bench-{os.getpid()}-{index}")
        before_s, started = _processor_s(), time.perf_counter()
        try:
            make(network)
            seconds.append(time.perf_counter() - started)
            processor_s += _processor_s() - before_s
        finally:
            network.remove()
    least_ms, median_ms = 1000 * min(seconds), 1000 * statistics.median(seconds)
    print(f"{what:12} {least_ms:6.2f} {median_ms:6.2f} processor {1000 * processor_s / runs:6.2f} ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args(arguments).runs
    spares = SpareNetworks(runs)
    spares.fill()

    def from_stock(network: ReplicaNetwork) -> None:
        network.create(spares)
        network.open_gateway()

    def made_now(network: ReplicaNetwork) -> None:
        network.create()
        network.open_gateway()

    measure("from stock", from_stock, runs)
    measure("made now", made_now, runs)
    measure("ip netns", lambda network: by_ip(network.name), runs)
    spares.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
