"""How long a control plane's successor takes, on one PostgreSQL, from the leader's end to a right answer.

    .venv/bin/python benchmarks/cluster/bench_takeover.py

Two real control planes and a real PostgreSQL; the node agent they share is the tests' own, so that nothing
but the control planes is measured. A replica is warm before and after. After SIGTERM the clock starts once
the process has ended. Writes takeover.json and .md; exit code 1 when the promise is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx
import report
from tests.control.conftest import app_spec, state_directory
from tests.control.control_process import control_process
from tests.control.fake_agent import FakeAgent
from tests.postgres import PostgresServer

from glowplug.observe.quantiles import quantile
from glowplug.types.errors import DeadlineExceeded, RuntimeFailed
from glowplug.types.paths import DATABASE_URL_VARIABLE

WANTED_S = 5.0
_DEADLINE_S = 60.0
_LEADS_S = 1.0
_POLL_S = 0.01


async def takeover_s(how: signal.Signals) -> float:
    """Seconds from the leader's end until the other answers as it did.

    Raises RuntimeFailed for another answer or a second start, DeadlineExceeded.
    """
    with state_directory() as first, state_directory() as second:
        agent = FakeAgent(first.agent_socket)
        await agent.open()
        second.agent_socket.symlink_to(first.agent_socket)
        try:
            async with (
                httpx.AsyncClient(timeout=_DEADLINE_S, trust_env=False) as client,
                control_process(first, "--port", "0") as leader,
                control_process(second, "--port", "0") as standby,
            ):
                await client.post(f"{leader.url}/api/v1/deployments", json={"app": app_spec()})
                known = (await client.get(f"{leader.url}/shop/web/")).text
                await asyncio.sleep(_LEADS_S)
                leader.process.send_signal(how)
                if how is signal.SIGTERM:
                    await leader.process.wait()
                ended_s = time.monotonic()
                answer = await _first_answer(client, f"{standby.url}/shop/web/")
                took_s = time.monotonic() - ended_s
        finally:
            await agent.close()
    if answer != known or len(agent.orders) != 1:
        raise RuntimeFailed(f"{answer!r} instead of {known!r}, {len(agent.orders)} starts instead of one.")
    return took_s


async def _first_answer(client: httpx.AsyncClient, url: str) -> str:
    deadline_s = time.monotonic() + _DEADLINE_S
    while (response := await client.get(url)).status_code != httpx.codes.OK:
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded(f"Nobody took over within {_DEADLINE_S:g} s.", stage="takeover")
        await asyncio.sleep(_POLL_S)
    return response.text


def main() -> int:
    """Exit code 1 when the promise is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="of each way to end")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    server = PostgresServer()
    os.environ[DATABASE_URL_VARIABLE] = server.url
    try:
        for how in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
            for _ in range(arguments.runs):
                server.empty()
                seconds.setdefault(how.name, []).append(asyncio.run(takeover_s(how)))
                print(f"  {how.name}  {seconds[how.name][-1]:.2f} s", flush=True)
    finally:
        server.close()
    rows = [
        [name, len(found), *(f"{quantile(sorted(found), q):.2f} s" for q in (0.0, 0.5, 1.0))]
        for name, found in seconds.items()
    ]
    result = {"machine": report.machine(), "seconds": seconds, "wanted_s": WANTED_S}
    lines = ["# Takeover", "", *report.table(("the leader's end", "n", "least", "median", "most"), rows)]
    report.write(arguments.output, "takeover", result, lines)
    return 0 if max(max(found) for found in seconds.values()) <= WANTED_S else 1


if __name__ == "__main__":
    sys.exit(main())
