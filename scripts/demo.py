"""The demo: a real vLLM that costs nothing while nobody asks, and answers in seconds when somebody does.

Deploys ``examples/chat_vllm.py`` on a private, temporary Glowplug, asks it a question cold, waits for the
snapshot, then lets it scale to zero and asks again, several times; parks it and asks again, as often; and in
the end asks a second node, with nothing on its disk, that finds the snapshot in the region (here a folder).
Exits with 1 unless every answer is the same, and right. ``make demo`` installs what it needs first.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from chat import MODEL, QUESTION, Answer, ask
from live_session import EXAMPLES, LiveSession
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from glowplug.observe.plot import plot_cdf
from glowplug.observe.quantiles import answered_seconds, speedups, summarise
from glowplug.observe.waterfall import format_bytes, waterfall
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import ReplicaState, StartPath

APP = "chat"
REPOSITORY = Path(__file__).resolve().parent.parent
WHAT_NEXT = """\
export PATH=$PWD/.venv/bin:$PATH
glowplug up                                  # the same, to stay
glowplug deploy examples/chat_vllm.py
curl localhost:8080/chat/vllm/v1/chat/completions -H 'content-type: application/json' \\
  -d '{"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of Italy?"}]}'
glowplug ps                                  # what runs; wait a moment, and nothing does
glowplug coldstarts chat --svg cdf.svg       # where the seconds went
glowplug run -- python3 -m http.server 8000  # any command that listens on a port
glowplug doctor                              # what this machine can do
glowplug down"""


class Demo:
    """One run of the demo: asks, remembers every answer and record, and tells about it."""

    def __init__(self, session: LiveSession, console: Console) -> None:
        self._session = session
        self._console = console
        # A state directory that the user named may hold records of an earlier run.
        self._known_ids = {record.id for record in session.cold_starts(APP)}
        self.answers: list[Answer] = []
        self.records: list[ColdStartRecord] = []

    def ask(self, title: str) -> ColdStartRecord:
        """Put the question to a server that is scaled to zero, showing the answer as it streams."""
        console = self._console
        console.print(Rule(title, style="bright_black", align="left"))
        console.print(Text.assemble(("you      ", "bold"), QUESTION))
        console.print(Text.assemble((f"{MODEL}  ", "bold")), end="")

        def show(token: str) -> None:
            console.print(Text(token, style="green"), end="")
            console.file.flush()

        answer = ask(self._session.client, on_token=show)
        console.print()
        record = self._session.wait_for_record(APP, self._known_ids)
        self._known_ids.add(record.id)
        self.answers.append(answer)
        self.records.append(record)
        times = f"first token after {answer.first_token_s:.2f} s, all of it after {answer.total_s:.2f} s"
        console.print(Text(f"         {times}  ({record.path.value})", style="bright_black"))
        if record.fallback_reason and record.path is StartPath.COLD and len(self.records) > 1:
            console.print(Text(f"         not restored: {record.fallback_reason}", style="bold yellow"))
        return record

    def wait_for_snapshot(self) -> str:
        """Until the memory of an initialised server lies on disk, tried and found good. Its id."""
        told = ""

        with self._console.status("Capturing a snapshot in the background") as status:

            def tell(text: str) -> None:
                nonlocal told
                if text != told and not self._console.is_terminal:
                    self._console.print(f"  {text}", style="bright_black", highlight=False)
                told = text
                status.update(f"Capturing a snapshot in the background: {text}")

            snapshot = self._session.wait_for_snapshot(APP, progress=tell)
        took = f", captured in {snapshot.capture_s:.1f} s" if snapshot.capture_s else ""
        self._console.print(
            f"Snapshot {snapshot.id} is good: {format_bytes(snapshot.bytes)}{took}", highlight=False
        )
        return snapshot.id

    def wait_until_zero(self) -> None:
        """Until nothing of the app runs."""
        with self._console.status("Waiting until it has scaled to zero"):
            took_s = self._session.wait_until_zero(APP)
        self._console.print(f"Scaled to zero ({took_s:.1f} s later): nothing runs.", highlight=False)

    def wait_until_parked(self) -> None:
        """Until its replica is frozen, with its memory and its sockets."""

        def is_parked() -> bool:
            states = [view.state for view in self._session.replicas(APP)]
            return states == [ReplicaState.PARKED]

        with self._console.status("Waiting until it is parked"):
            took_s = self._session.wait(is_parked, 60.0, f"{APP} to be parked")
        self._console.print(f"Parked ({took_s:.1f} s later): frozen, its memory kept.", highlight=False)

    def report(self, output: Path) -> None:
        """Answers, waterfalls, figures and the picture."""
        console = self._console
        console.print(Rule("Every answer", style="bright_black", align="left"))
        for answer, record in zip(self.answers, self.records, strict=True):
            console.print(Text(f"{record.path.value:>13} {record.total_s:7.2f} s  {answer.text}"))
        console.print(Rule("Where the seconds went", style="bright_black", align="left"))
        for record in {record.path: record for record in self.records}.values():
            console.print(waterfall(record, min(console.width, 100)))
            console.print()
        console.print(Rule("Cold against restored", style="bright_black", align="left"))
        self._print_figures()
        for suffix in ("svg", "png"):
            plot_cdf(
                self.records,
                output / f"cdf.{suffix}",
                "vLLM with SmolLM2-135M, from zero to its first answer",
            )
        console.print(
            f"Picture: {output / 'cdf.svg'} and {output / 'cdf.png'}", highlight=False, soft_wrap=True
        )

    def _print_figures(self) -> None:
        table = Table("path", "starts", "p50", "p90", "p99", "mean", "failed", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for summary in summarise(self.records):
            seconds = (summary.p50_s, summary.p90_s, summary.p99_s, summary.mean_s)
            cells = [f"{value:.2f} s" for value in seconds]
            table.add_row(summary.path.value, str(summary.n), *cells, str(summary.failed))
        self._console.print(table)
        cold, restored = (
            answered_seconds(self.records, path) for path in (StartPath.COLD, StartPath.CPU_SNAPSHOT)
        )
        if not cold or not restored:
            return
        compared = speedups(cold, restored)
        factors = ", ".join(f"{s.ratio:.0f}x at p{s.q * 100:.0f}" for s in compared)
        self._console.print(Text(f"Restored is faster by {factors}.", style="bold"))


def deploy(session: LiveSession, runtime: str, parked_window_s: float | None = None) -> None:
    """As a user would; or, for what the example does not say, the same with that changed."""
    if runtime == "auto" and parked_window_s is None:
        session.glowplug("deploy", str(EXAMPLES / "chat_vllm.py"))
        return
    spec: dict[str, Any] = session.load_spec(EXAMPLES / "chat_vllm.py")
    (server,) = spec["servers"]
    if runtime != "auto":
        server["runtime"] = runtime
    if parked_window_s is not None:
        server["scaling"]["parked_window_s"] = parked_window_s
    session.deploy_spec(spec)


def run(cycles: int, output: Path, console: Console, runtime: str = "auto") -> list[str]:
    """The whole story. Returns what went wrong, if anything."""
    console.print("Starting Glowplug on a private state directory", highlight=False)
    with _region() as region:
        environment = {"GLOWPLUG_DEMO_WINDOW_S": "3", "GLOWPLUG_REGION": str(region)}
        with LiveSession(environment) as session:
            console.print(f"It answers at {session.url}. Deploying examples/chat_vllm.py", highlight=False)
            deploy(session, runtime)
            demo = Demo(session, console)
            demo.ask("First question ever: a cold start (a minute or two)")
            snapshot = demo.wait_for_snapshot()
            for cycle in range(1, cycles + 1):
                demo.wait_until_zero()
                demo.ask(f"Again, from zero: {cycle} of {cycles}")
            demo.wait_until_zero()
            deploy(session, runtime, parked_window_s=300.0)
            demo.ask("Deployed again, with a place to be parked in: from zero once more")
            for cycle in range(1, cycles + 1):
                demo.wait_until_parked()
                demo.ask(f"Again, from parked: {cycle} of {cycles}")
            with console.status("Bringing the snapshot to the region"):
                session.glowplug("snapshot", "push", snapshot)
            demo.report(output)
            console.print("Stopping everything", highlight=False)
        elsewhere = ask_another_node(environment, console, runtime)
    return problems(demo, elsewhere)


def ask_another_node(environment: dict[str, str], console: Console, runtime: str) -> Demo:
    """A node that never saw the server, and has nothing on its disk."""
    console.print(Rule("Another node", style="bright_black", align="left"))
    with LiveSession(environment, node="-2") as session:
        deploy(session, runtime)
        demo = Demo(session, console)
        record = demo.ask("The same question, to a node with an empty disk: from the region's snapshot")
        console.print(waterfall(record, min(console.width, 100)))
        console.print("Stopping everything", highlight=False)
    return demo


def problems(*demos: Demo) -> list[str]:
    """What is wrong with the answers; empty when all is well."""
    answers = [answer for demo in demos for answer in demo.answers]
    found = []
    if wrong := [answer.text for answer in answers if not answer.is_correct]:
        found.append(f"{len(wrong)} answers are not vLLM's own: {wrong}")
    if len({answer.text for answer in answers}) > 1:
        found.append("The answers differ: a restored server must say what the cold one said.")
    for demo in demos:
        if not any(record.path is StartPath.CPU_SNAPSHOT for record in demo.records):
            reasons = {record.fallback_reason for record in demo.records} - {None}
            found.append(f"No start was a restore: {reasons}")
    return found


@contextmanager
def _region() -> Iterator[Path]:
    """An empty folder that serves as the region; not below /tmp, which is memory on many machines."""
    with tempfile.TemporaryDirectory(prefix="glowplug-demo-region-", dir="/var/tmp") as folder:
        yield Path(folder)


def main() -> NoReturn:
    """Parse the command line, run, and exit with the verdict."""
    parser = argparse.ArgumentParser(description="Scale a real vLLM to zero and back.")
    parser.add_argument("--cycles", type=int, default=5, help="how often to ask again (5)")
    parser.add_argument(
        "--runtime", default="auto", choices=("auto", "runsc", "runc"), help="container runtime (auto)"
    )
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "demo-output", help="folder for the picture"
    )
    arguments = parser.parse_args()
    if arguments.cycles < 1:
        parser.error("--cycles must be at least 1")
    console = Console(highlighter=None)
    # `kill` stops as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    try:
        found = run(arguments.cycles, arguments.output, console, arguments.runtime)
    except GlowplugError as error:
        console.print(Text(f"The demo failed: {error.message}", style="bold red"))
        if error.remedy:
            console.print(Text(error.remedy))
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        sys.exit(130)
    if found:
        for problem in found:
            console.print(Text(f"WRONG: {problem}", style="bold red"))
        sys.exit(1)
    console.print(Text("All answers are the same, and right.", style="bold green"))
    console.print(Rule("What to type next", style="bright_black", align="left"))
    console.print(WHAT_NEXT, soft_wrap=True, markup=False)
    sys.exit(0)


if __name__ == "__main__":
    main()
