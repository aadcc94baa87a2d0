"""A cluster of three real nodes under load: each fault alone, and random sequences of them.

What callers are owed: what can be repeated is answered, rightly; what cannot is done at most once, and
answered or refused clearly. What the cluster is owed: no deployment is lost, no replica runs twice, all
nodes are used again and nothing is left, without a hand. A sequence follows from its seed, which is in the
test's name:
``GLOWPLUG_FAULT_SEED`` is the first, ``GLOWPLUG_FAULT_SEQUENCES`` how many there are (``make faults``: 100).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests import needs
from tests.e2e import leftovers
from tests.e2e.bridge import a_bridge
from tests.e2e.clients import Clients, Told
from tests.e2e.cluster import nodes, wait_for_state
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import Live
from tests.faults.cluster.faults import FAULTS, NOTICED_WITHIN_S, World
from tests.faults.cluster.machines import faulty_machine
from tests.faults.random_kills import unclean
from tests.postgres import PostgresServer
from tests.runtime.conftest import require_runc

SEED = int(os.environ.get("GLOWPLUG_FAULT_SEED", "20261201"))
SEQUENCES = int(os.environ.get("GLOWPLUG_FAULT_SEQUENCES", "3"))
FAULTS_IN_A_SEQUENCE = 4
LONGEST_S = 8.0
LONGEST_PAUSE_S = 2.0
CALLERS = 6
PAUSE_S = 0.1
DEADLINE_S = 120.0
ANSWERS_BETWEEN = 12
CONVERGED_WITHIN_S = 120.0
MACHINES = ("beta", "gamma")
LEDGER_SERVER = (Path(__file__).parent / "ledger_server.py").read_text()

pytestmark = [pytest.mark.sandbox, pytest.mark.nightly, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    pytest.importorskip("psycopg", reason="PostgreSQL needs glowplug[postgres]")
    require_runc()
    needs.programs("nft", "mkfs.ext4")
    with (
        closing(PostgresServer()) as database,
        Live(host="0.0.0.0", GLOWPLUG_DATABASE_URL=database.url) as live,
        a_bridge() as bridge,
        faulty_machine(live, MACHINES[0], bridge) as beta,
        faulty_machine(live, MACHINES[1], bridge) as gamma,
    ):
        failed_before = request.session.testsfailed
        machines = [beta, gamma]
        for machine in machines:
            machine.join()
            wait_for_state(live, machine.name, "ready")
        yield World(live, machines, database)
        live.keeps_logs = request.session.testsfailed > failed_before


@pytest.fixture
def servers(world: World, tmp_path: Path) -> Iterator[dict[str, Deployed]]:
    """``one`` must never be there twice; of ``many`` there may be three."""
    apps = Apps(world.live, tmp_path)
    command = ["python3", "-c", LEDGER_SERVER]
    common = {"command": command, "snapshot": False, "runtime": "runc", "memory": "64MiB", "cpus": 0.2}
    yield {
        "one": apps.deploy(word="one", min_replicas=1, max_replicas=1, **common),
        "many": apps.deploy(word="many", min_replicas=1, max_replicas=3, target_concurrency=2, **common),
    }
    world.live.remove(apps.names)
    for machine in world.machines:
        world.live.wait_for(
            lambda m=machine: not leftovers.of_apps(m.state, apps.names),
            f"nothing to be left on {machine.name}",
        )


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.__name__ for fault in FAULTS])
def test_one_fault(world: World, servers: dict[str, Deployed], number: int) -> None:
    sequence(world, servers, random.Random(SEED), [number])


@pytest.mark.parametrize("seed", range(SEED, SEED + SEQUENCES))
def test_a_random_sequence(world: World, servers: dict[str, Deployed], seed: int) -> None:
    rng = random.Random(seed)
    sequence(world, servers, rng, [rng.randrange(len(FAULTS)) for _ in range(FAULTS_IN_A_SEQUENCE)])


def sequence(world: World, servers: dict[str, Deployed], rng: random.Random, numbers: list[int]) -> None:
    """Strike, wait, mend, again; then everything is as it was."""
    live = world.live
    deployed = active(live)
    world.noticed_s.clear()
    paths = [f"{app.path}/" for app in servers.values()]
    with Clients(live.url, paths, CALLERS, lambda: PAUSE_S, posts_every=3, deadline_s=DEADLINE_S) as load:
        load.wait_for_answers(ANSWERS_BETWEEN)
        for number in numbers:
            mend = FAULTS[number](world, rng)
            try:
                time.sleep(rng.uniform(0.0, LONGEST_S))
                load.wait_for_answers(ANSWERS_BETWEEN)
            finally:
                mend()
            time.sleep(rng.uniform(0.0, LONGEST_PAUSE_S))
        load.wait_for_answers(ANSWERS_BETWEEN)
        converge(world, servers)
    told = load.told
    names = [FAULTS[number].__name__ for number in numbers]
    print(
        f"\n{names}: {len(told.answers)} answers, the slowest after {told.slowest_s:.1f} s, posts "
        f"{Counter(status[:3] for status in told.posted.values())}, gone machines noticed after "
        f"{[f'{seconds:.1f} s' for seconds in world.noticed_s]}"
    )
    assert told.wrong == told.refusals == told.unanswered == unclean(told.refused_posts) == []
    assert max(world.noticed_s, default=0.0) <= NOTICED_WITHIN_S
    assert_done_once(world, told)
    assert active(live) == deployed


def active(live: Live) -> list[str]:
    """The deployments that serve."""
    return sorted(one["id"] for one in live.get("/api/v1/deployments") if one["active"])


def converge(world: World, servers: dict[str, Deployed]) -> None:
    """All nodes are used, and what runs is what should, each of it once."""
    live = world.live
    for machine in world.machines:
        live.wait_for(lambda m=machine: world.state_of(m.name) == "ready", f"{machine.name} is used again")

    def runs() -> dict[str, list[str]] | None:
        found = {word: [view.id for view in live.ready(app.name)] for word, app in servers.items()}
        known = sum(node["replicas"] for node in nodes(live).values())
        is_right = len(found["one"]) == 1 and 1 <= len(found["many"]) <= 3
        return found if is_right and known == len(found["one"] + found["many"]) else None

    found = live.wait_for(runs, "what runs is what should", CONVERGED_WITHIN_S)
    everywhere = found["one"] + found["many"]
    assert len(set(everywhere)) == len(everywhere), "no replica is there twice"
    live.wait_for(lambda: world.replicas() == sorted(everywhere), "nothing else is on any machine")


def assert_done_once(world: World, told: Told) -> None:
    """By the replicas' own logs, which outlive them."""
    done: Counter[str] = Counter()
    states: list[Any] = [world.live.state, *(machine.state for machine in world.machines)]
    for state in states:
        for log in state.logs.glob("replicas/*"):
            lines = log.read_text(errors="replace").splitlines()
            done.update(line.removeprefix("did ") for line in lines if line.startswith("did "))
    assert not {name: count for name, count in done.items() if count > 1}, "done twice"
    answered = {name for name, status in told.posted.items() if status == "200"}
    lost = answered - done.keys()
    assert not lost, f"answered, and never done: {sorted(lost)}"
