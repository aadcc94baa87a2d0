"""How much our own processes keep: the promises of docs/specification.md, measured on the real ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.live import Live, resident_bytes

pytestmark = pytest.mark.sandbox

MOST_AT_REST_BYTES = 150 * 10**6
MOST_PER_REPLICA_BYTES = 5 * 10**6
REPLICAS = 8


def test_the_agent_keeps_within_its_memory_at_rest_and_per_replica(live: Live, apps: Apps) -> None:
    cycle = apps.deploy(word="cycle")
    cycle.ask()
    live.wait_for_snapshot(cycle.name)
    live.rest(cycle.name)
    cycle.ask()
    live.rest(cycle.name)
    agent, control = live.pid_of("node"), live.pid_of("control")
    at_rest_bytes = resident_bytes(agent)

    many = apps.deploy(word="many", min_replicas=REPLICAS, max_replicas=REPLICAS, memory="64MiB", cpus=0.1)
    live.wait_for(lambda: len(live.ready(many.name)) == REPLICAS, f"{REPLICAS} replicas")
    live.wait_for_snapshot(many.name)
    per_replica_bytes = (resident_bytes(agent) - at_rest_bytes) / REPLICAS
    print(
        f"agent at rest {at_rest_bytes / 1e6:.1f} MB, per replica {per_replica_bytes / 1e6:.2f} MB; "
        f"control {resident_bytes(control) / 1e6:.1f} MB"
    )
    assert at_rest_bytes <= MOST_AT_REST_BYTES
    assert per_replica_bytes <= MOST_PER_REPLICA_BYTES


def test_an_idle_agent_leaves_the_processor_alone(live: Live) -> None:
    agent = live.pid_of("node")

    def share_of_three_seconds() -> float:
        before, began_s = _cpu_ticks(agent), time.monotonic()
        time.sleep(3)
        return (_cpu_ticks(agent) - before) / 100 / (time.monotonic() - began_s)

    live.wait_for(lambda: share_of_three_seconds() < 0.2, "it to have done what there was to do")


def _cpu_ticks(pid: int) -> int:
    """User and system time, in hundredths of a second (proc(5) fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
