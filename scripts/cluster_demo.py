"""The demo of clusters: three machines on a real Ray, an app deployed once, one that dies under load.

The machines are network namespaces on this one, each with a raylet, an agent, a gateway and a router of its
own; the head of Ray and the control plane are on this machine as it is, which takes no replica. A light app,
or with ``--engine vllm`` a real vLLM, starts cold on one machine; the others restore its snapshot from the
region (here a folder). Then come more callers than one copy serves, and while they ask one machine loses its
power. Prints cold starts by machine in the end, and exits with 1 unless every caller got the right answer,
all machines took part, and the dead one's copies were started elsewhere. ``make demo-cluster`` installs what
it needs first.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
from chat import chat_request, is_right
from live_session import EXAMPLES
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from tests.e2e.cluster import nodes
from tests.e2e.ray_machines import RayLive, RayMachine, on_ray

from glowplug.observe.quantiles import quantile
from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import Stage

OWN = socket.gethostname()
WINDOW_S = "20"
REQUEST_TIMEOUT_S = 240.0
START_TIMEOUT_S = 300.0
BURST_TIMEOUT_S = 120.0
AFTER_DEATH_S = 15.0


@dataclass(frozen=True)
class Engine:
    """An app, how it is asked, and what makes an answer right. Requests may all be repeated."""

    file: Path
    app: str
    server: str
    replicas: int
    callers: int
    request: Callable[[], dict[str, Any]]
    is_right: Callable[[Any], bool]


def _asks_vllm() -> dict[str, Any]:
    # The router repeats what says that it may be.
    headers = {"Idempotency-Key": f"demo-{time.monotonic_ns()}"}
    body = chat_request(stream=False)
    return {"method": "POST", "url": "v1/chat/completions", "json": body, "headers": headers}


ENGINES = {
    "light": Engine(
        EXAMPLES / "ray" / "app.py", "light", "web", 6, 6,
        lambda: {"method": "GET", "url": "?seconds=1"},
        lambda answer: answer["sum"] == sum(range(1000)),
    ),
    "vllm": Engine(
        EXAMPLES / "chat_vllm.py", "chat", "vllm", 3, 12,
        _asks_vllm,
        lambda answer: is_right(answer["choices"][0]["message"]["content"]),
    ),
}  # fmt: skip


@dataclass
class Tally:
    """What callers got. ``wrong`` are the words of all that was not a right answer."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, took_s: float, wrong: str) -> None:
        """One answer."""
        with self.lock:
            self.took_s.append(took_s)
            if wrong:
                self.wrong.append(wrong)


class Demo:
    """One run. ``problems`` is what did not hold."""

    def __init__(self, live: RayLive, machines: list[RayMachine], engine: Engine, console: Console) -> None:
        self._live = live
        self._machines = machines
        self._engine = engine
        self._console = console
        # Nobody else's on this machine: in the end nothing of it may be left.
        self.app = live.new_name(engine.app)
        self.problems: list[str] = []

    def tell(self, words: str) -> None:
        """One line."""
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)

    def chapter(self, title: str) -> None:
        """What comes now."""
        self._console.print(Rule(title, style="bright_black", align="left"))

    def expect(self, holds: bool, words: str) -> None:
        """Remember it unless it holds."""
        if not holds:
            self.problems.append(words)

    def run(self) -> None:
        """The whole story."""
        self.chapter("Three machines join a Ray cluster")
        for machine in self._machines:
            took_s = machine.join_cluster(self._live)
            self.tell(f"{machine.name} is ready {took_s:.1f} s after `cluster join`")
        self._live.cli("cluster", "drain", OWN)
        self.show("cluster", "status")
        self.chapter(f"{self._engine.file.name} is deployed once")
        deploy = ("deploy", str(self._engine.file), "--name", self.app)
        self._live.cli(*deploy, timeout_s=START_TIMEOUT_S)
        self.start_everywhere()
        tally = self.burst()
        self.expect(not tally.wrong, f"{len(tally.wrong)} answers were not right: {tally.wrong[:3]}")
        self.table()

    def start_everywhere(self) -> None:
        """Cold on the first machine, restored from the region's snapshot on the others."""
        for number, machine in enumerate(self._machines):
            self.only(machine)
            began_s = time.monotonic()
            wrong = self.ask()
            self.expect(not wrong, f"{machine.name}: {wrong}")
            record = self._live.cold_starts(self.app)[0]
            took_s = time.monotonic() - began_s
            self.tell(f"{record.node}: first answer after {took_s:.2f} s, {record.path.value}")
            self.expect(record.node == machine.name, f"it was started on {record.node}, not {machine.name}")
            if number == 0:
                self._live.wait_for_snapshot(self.app, START_TIMEOUT_S)
                self._live.wait_for(
                    lambda: any(one.is_in_region for one in self._live.snapshots(self.app)),
                    "its snapshot to be in the region",
                    START_TIMEOUT_S,
                )
                self.tell("its snapshot is in the region")
            self._live.rest(self.app)
        self.only(*self._machines)

    def burst(self) -> Tally:
        """Callers who ask again and again, from zero; a machine dies once all machines answer."""
        engine, tally, over = self._engine, Tally(), threading.Event()
        self.chapter(f"From zero: {engine.callers} callers at once, for at most {engine.replicas} copies")
        caller = {"target": self.keep_asking, "args": (tally, over)}
        threads = [threading.Thread(**caller) for _ in range(engine.callers)]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            names = {machine.name for machine in self._machines}
            self._live.wait_for(
                lambda: set(self.copies()) == names, "copies on all machines", BURST_TIMEOUT_S
            )
            self.tell(f"after {time.monotonic() - began_s:.1f} s: {_spread(self.copies())}")
            self.kill(max(self._machines, key=lambda machine: self.copies()[machine.name]), tally)
        finally:
            over.set()
            for thread in threads:
                thread.join(REQUEST_TIMEOUT_S)
        took_s = sorted(tally.took_s)
        self.tell(
            f"{len(took_s)} answers, {len(tally.wrong)} not right; "
            f"they took {quantile(took_s, 0.5):.2f} s at p50, {took_s[-1]:.1f} s at most"
        )
        return tally

    def kill(self, victim: RayMachine, tally: Tally) -> None:
        """A power cut: no process of it is left, its cable carries nothing, and nobody is told."""
        live, before = self._live, self.copies()
        self.chapter(f"{victim.name} loses its power, with {before[victim.name]} of {before.total()} copies")
        began_s = time.monotonic()
        victim.switch_off()
        live.wait_for(lambda: nodes(live)[victim.name]["state"] == "lost", f"{victim.name} to be lost")
        self.tell(f"it is given up {time.monotonic() - began_s:.1f} s after it died")
        live.wait_for(
            lambda: (now := self.copies()).total() >= before.total() and not now[victim.name],
            "its copies to be started elsewhere",
            BURST_TIMEOUT_S,
        )
        took_s = time.monotonic() - began_s
        self.tell(f"after {took_s:.1f} s its copies are elsewhere: {_spread(self.copies())}")
        answered = len(tally.took_s)
        time.sleep(AFTER_DEATH_S)
        self.expect(len(tally.took_s) > answered, "nobody was answered after the machine had died")
        live.wait_for(lambda: "Ray has lost it" in live.cli("cluster", "status").stdout, "Ray to notice")
        self.tell(f"Ray has noticed, too, {time.monotonic() - began_s:.0f} s after it died")
        self.show("cluster", "status")
        self.revive(victim)

    def revive(self, victim: RayMachine) -> None:
        """Its power is back: Ray is started there as its init system would, and the engine does the rest."""
        live, began_s = self._live, time.monotonic()
        victim.stop_ray()
        victim.mend()
        victim.start_ray_again()
        live.wait_for(
            lambda: nodes(live).get(victim.name, {}).get("state") == "ready",
            f"{victim.name} to be used again",
            START_TIMEOUT_S,
        )
        self.tell(f"it has its power again, and is ready {time.monotonic() - began_s:.1f} s later")

    def table(self) -> None:
        """Cold starts by machine."""
        self.chapter("Cold starts, by machine")
        records = self._live.cold_starts(self.app)
        by_machine: dict[tuple[str, str], list[ColdStartRecord]] = {}
        for record in records:
            by_machine.setdefault((record.node, record.path.value), []).append(record)
        table = Table("machine", "path", "starts", "ready after, p50", "longest", "failed", box=None)
        for column in table.columns[2:]:
            column.justify = "right"
        for (node, path), found in sorted(by_machine.items()):
            seconds = sorted(_ready_after_s(one) for one in found)
            times = (f"{quantile(seconds, 0.5):.2f} s", f"{seconds[-1]:.2f} s")
            failed = sum(one.outcome is Outcome.FAILED for one in found)
            table.add_row(node, path, str(len(found)), *times, str(failed))
        self._console.print(table)
        seen = {node for node, _ in by_machine}
        self.expect(
            seen >= {machine.name for machine in self._machines}, f"only {sorted(seen)} started anything"
        )

    # -- parts -------------------------------------------------------------------------------------------

    def keep_asking(self, tally: Tally, over: threading.Event) -> None:
        """One caller, until it is over."""
        while not over.is_set():
            began_s = time.monotonic()
            wrong = self.ask()
            tally.add(time.monotonic() - began_s, wrong)

    def ask(self) -> str:
        """Once; empty if the answer is right, else what came instead."""
        asked = self._engine.request()
        url = f"{self._live.url}/{self.app}/{self._engine.server}/{asked.pop('url')}"
        try:
            answer = httpx.request(**asked, url=url, timeout=REQUEST_TIMEOUT_S, trust_env=False)
            if answer.status_code == httpx.codes.OK and self._engine.is_right(answer.json()):
                return ""
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
        return f"{answer.status_code} {answer.text[:200]}"

    def copies(self) -> Counter[str]:
        """Ready ones by machine; a lost machine has none."""
        lost = {name for name, node in nodes(self._live).items() if node["state"] == "lost"}
        ready = (str(view.node) for view in self._live.ready(self.app))
        return Counter(node for node in ready if node not in lost)

    def only(self, *machines: RayMachine) -> None:
        """New copies go to these machines."""
        for machine in self._machines:
            verb = "undrain" if machine in machines else "drain"
            self._live.http.post(f"/api/v1/nodes/{machine.name}/{verb}").raise_for_status()

    def show(self, *command: str) -> None:
        """What a command prints."""
        self._console.print(f"$ glowplug {' '.join(command)}", style="bold", highlight=False)
        self.tell(self._live.cli(*command).stdout.rstrip())


def _ready_after_s(record: ColdStartRecord) -> float:
    """Until it could take its first request; in a burst another copy may have answered who waited for it."""
    return sum(seconds for stage, seconds in record.stages_s.items() if stage is not Stage.FIRST_ANSWER)


def _spread(copies: Counter[str]) -> str:
    return ", ".join(f"{count} on {node}" for node, count in sorted(copies.items())) or "none"


def run(engine: Engine, console: Console) -> list[str]:
    """The demo on a private cluster, which is gone afterwards. What did not hold."""
    with tempfile.TemporaryDirectory(prefix="glowplug-demo-region-", dir="/var/tmp") as region:
        environment = {
            "GLOWPLUG_REGION": region,
            "GLOWPLUG_SHARE_SNAPSHOTS": "push",
            "GLOWPLUG_DEMO_REPLICAS": str(engine.replicas),
            "GLOWPLUG_DEMO_WINDOW_S": WINDOW_S,
        }
        console.print("Starting Ray, and Glowplug on it: glowplug cluster up --engine ray", highlight=False)
        with on_ray(3, **environment) as (live, machines):
            demo = Demo(live, machines, engine, console)
            try:
                demo.run()
            finally:
                live.remove({demo.app})
                console.print("Stopping everything", highlight=False)
                live.cli("cluster", "down", timeout_s=240.0)
        return demo.problems


def main() -> NoReturn:
    """Parse the command line, run, and exit with the verdict."""
    parser = argparse.ArgumentParser(description="Three machines on Ray, a burst, and one that dies.")
    parser.add_argument("--engine", default="light", choices=sorted(ENGINES), help="what is served (light)")
    arguments = parser.parse_args()
    console = Console(highlighter=None)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    try:
        problems = run(ENGINES[arguments.engine], console)
    except (GlowplugError, AssertionError, httpx.HTTPError) as error:
        problems = [str(error)]
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        sys.exit(130)
    for problem in problems:
        console.print(Text(f"WRONG: {problem}", style="bold red"))
    if not problems:
        console.print(Text("All of it held: every answer was right.", style="bold green"))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
