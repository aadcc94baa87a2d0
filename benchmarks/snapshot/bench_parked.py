"""From parked to the first answer, and how many parked servers of 300 MB a machine holds.

    .venv/bin/python benchmarks/snapshot/bench_parked.py wake --runtime runsc --memory swap
    .venv/bin/python benchmarks/snapshot/bench_parked.py crowd --servers 50

``wake``: one server (``examples/parked_index.py`` with 300 MB that do not compress) is asked, parked, and
asked again, ``--runs`` times; the seconds are those of the caller, through the router. The question reads
little of the memory, or (``--question everything``) a byte of every page of it. ``crowd``: so many servers,
all parked with their memory in swap, then each asked once. A swap file is made where one is needed.
Budget of both: p99 from parked below 0.1 s (exit code 1 when missed). Writes parked-*.json. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from live_session import EXAMPLES, LiveSession, raise_for_error
from tests.swap_file import swap_file

from glowplug.observe.quantiles import quantile
from glowplug.types.errors import DeadlineExceeded, RuntimeFailed
from glowplug.types.replica import ReplicaState, ReplicaView, StartPath

BALLAST_MIB = 300
BUDGET_S = 0.1
QUESTIONS = {"lookup": "/?word=w4711", "everything": "/everything"}
# What a replica has beside its 300 MB (interpreter, sandbox), rounded up.
SWAP_PER_SERVER_BYTES = 400 << 20
_WAIT_S = 60.0
_POLL_S = 0.02


class Crowd:
    """So many servers of one app, parked as soon as they are idle."""

    def __init__(self, session: LiveSession, *, servers: int, runtime: str, memory: str) -> None:
        self._session = session
        spec = session.load_spec(EXAMPLES / "parked_index.py")
        (pattern,) = spec["servers"]
        pattern |= {"runtime": runtime}
        pattern["snapshot"]["enabled"] = False
        pattern["scaling"] |= {"scaledown_window_s": 0.2, "parked_window_s": 3600.0, "parked_memory": memory}
        self._app: str = spec["name"]
        self._is_pushed_out = memory == "swap"
        self.names = [f"lookup-{number}" for number in range(servers)]
        spec["servers"] = [copy.deepcopy(pattern) | {"name": name} for name in self.names]
        session.deploy_spec(spec)

    def ask(self, name: str, question: str) -> tuple[float, str]:
        """Seconds to the whole answer, and the answer."""
        began = time.monotonic()
        response = self._session.client.get(
            f"/{self._app}/{name}{QUESTIONS[question]}", headers={"connection": "close"}
        )
        took_s = time.monotonic() - began
        raise_for_error(response)
        return took_s, response.text

    def parked(self) -> list[ReplicaView]:
        """Who is parked, with the memory where it should be."""
        return [
            view
            for view in self.views()
            if view.state is ReplicaState.PARKED and view.is_pushed_out is self._is_pushed_out
        ]

    def views(self) -> list[ReplicaView]:
        """All replicas that have not ended."""
        answer = self._session.client.get("/api/v1/replicas")
        raise_for_error(answer)
        views = [ReplicaView.model_validate(view) for view in answer.json()]
        return [view for view in views if not view.state.is_final]

    def wait_until_parked(self, count: int) -> None:
        """Raises DeadlineExceeded."""
        _wait(lambda: len(self.parked()) >= count, f"{count} parked replicas")

    def paths(self) -> list[StartPath]:
        """How the replicas came to answer, latest first."""
        answer = self._session.client.get("/api/v1/coldstarts", params={"limit": 10_000})
        raise_for_error(answer)
        return [StartPath(record["path"]) for record in answer.json()]


def wake(runtime: str, memory: str, question: str, runs: int) -> dict[str, Any]:
    """One server, asked from parked again and again."""
    with contextlib.ExitStack() as stack:
        if memory == "swap":
            stack.enter_context(swap_file(2 * SWAP_PER_SERVER_BYTES))
        session = stack.enter_context(LiveSession({"GLOWPLUG_BALLAST_MIB": str(BALLAST_MIB)}))
        crowd = Crowd(session, servers=1, runtime=runtime, memory=memory)
        (name,) = crowd.names
        cold_s, expected = crowd.ask(name, question)
        samples = []
        for _ in range(runs):
            crowd.wait_until_parked(1)
            took_s, answer = crowd.ask(name, question)
            if answer != expected:
                raise RuntimeFailed(f"A woken server answered {answer!r}, expected {expected!r}.")
            samples.append(took_s)
        _wait(lambda: crowd.paths().count(StartPath.PARKED) == runs, "a record of every waking")
    return {"runtime": runtime, "memory": memory, "question": question, "cold_s": cold_s, **_summary(samples)}


def crowd_of(servers: int, runtime: str) -> dict[str, Any]:
    """Many servers parked with their memory in swap, then each asked once."""
    environment = {"GLOWPLUG_BALLAST_MIB": str(BALLAST_MIB)}
    with swap_file(servers * SWAP_PER_SERVER_BYTES), LiveSession(environment) as session:
        crowd = Crowd(session, servers=servers, runtime=runtime, memory="swap")
        before = _meminfo()
        answers = {}
        for count, name in enumerate(crowd.names, start=1):
            _, answers[name] = crowd.ask(name, "lookup")
            crowd.wait_until_parked(count)
        parked = _meminfo()
        held_bytes = sum(view.memory_bytes or 0 for view in crowd.parked())
        swapped_bytes = sum(view.swapped_bytes or 0 for view in crowd.parked())
        samples = [_ask_again(crowd, name, answers[name]) for name in crowd.names]
        woken = len(crowd.names)
        _wait(lambda: crowd.paths().count(StartPath.PARKED) == woken, "a record of every waking")
    return {
        "runtime": runtime,
        "servers": servers,
        "memory_used_bytes": before["MemAvailable"] - parked["MemAvailable"],
        "charged_bytes": held_bytes,
        "swap_used_bytes": before["SwapFree"] - parked["SwapFree"],
        "charged_swap_bytes": swapped_bytes,
        **_summary(samples),
    }


def _ask_again(crowd: Crowd, name: str, expected: str) -> float:
    """Seconds. Raises RuntimeFailed for another answer than before."""
    took_s, answer = crowd.ask(name, "lookup")
    if answer != expected:
        raise RuntimeFailed(f"{name}, woken, answered {answer!r}, expected {expected!r}.")
    return took_s


def _summary(samples: list[float]) -> dict[str, Any]:
    return {
        "n": len(samples),
        **{f"p{percent}_s": quantile(sorted(samples), percent / 100) for percent in (50, 90, 99)},
        "max_s": max(samples),
        "samples_s": samples,
    }


def _meminfo() -> dict[str, int]:
    text = Path("/proc/meminfo").read_text()
    return {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _wait(is_met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not is_met():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{what}: not within {_WAIT_S:g} s.")
        time.sleep(_POLL_S)


def main() -> int:
    """0 if the budget is kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("wake", "crowd"))
    parser.add_argument("--runtime", choices=("runsc", "runc"), default="runsc")
    parser.add_argument("--memory", choices=("keep", "swap"), default="keep")
    parser.add_argument("--question", choices=sorted(QUESTIONS), default="lookup")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--servers", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    wanted = parser.parse_args()
    if wanted.what == "wake":
        result = wake(wanted.runtime, wanted.memory, wanted.question, wanted.runs)
        name = f"parked-{wanted.runtime}-{wanted.memory}-{wanted.question}"
    else:
        result = crowd_of(wanted.servers, wanted.runtime)
        name = f"parked-{wanted.runtime}-crowd"
    wanted.output.mkdir(parents=True, exist_ok=True)
    (wanted.output / f"{name}.json").write_text(json.dumps(result, indent=1))
    shown = {key: value for key, value in result.items() if key != "samples_s"}
    print(json.dumps(shown))
    return 0 if result["p99_s"] < BUDGET_S else 1


if __name__ == "__main__":
    sys.exit(main())
