"""An engine's cold starts against its restores, per runtime, and against the bare host's cold start.

    .venv/bin/python benchmarks/snapshot/bench_engines.py --engine vllm --cold 10 --restores 100 --host 10

A sample is a question asked of a server that is scaled to zero, timed by the caller until the *whole and
correct* answer is there. All cases take turns in one run, so that all see the same machine. The cold starts
of a runtime are those of a deployment without snapshots; the host's are the same command without any of us.
Before each start memory is filled with clean page cache: a hypervisor takes back what is free for a moment.
Every sample is written down at once: a run that was interrupted goes on when it is started again.
Writes engines-ENGINE.json, .md, and a CDF per runtime as .svg and .png; exit code 1 when a promise is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image"))

import host_server
import report
from at_once import restore_at_once
from chat import Answer
from engine_page import evaluate, page, plot
from engines import ENGINES, Engine
from live_session import LiveSession
from machine import fill_memory
from samples import Sample, SampleLog
from storage import disk_read_bytes, sequential_read_bytes_per_s

from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import RuntimeFailed
from glowplug.types.replica import StartPath

HOST = "host cold"
RUNTIMES = ("runsc", "runc")
_BANDWIDTH_EVERY = 25


@dataclass(frozen=True)
class Case:
    """One way to start the engine. ``app`` is None for the bare host."""

    name: str
    app: str | None = None
    path: StartPath = StartPath.COLD
    drops_caches: bool = False


def cases_of(arguments: argparse.Namespace) -> dict[Case, int]:
    """How often each is wanted."""
    wanted = {Case(HOST): arguments.host}
    for runtime in arguments.runtime:
        restored = StartPath.CPU_SNAPSHOT
        wanted[Case(f"{runtime} cold", f"cold-{runtime}")] = arguments.cold
        wanted[Case(f"{runtime} restored", f"snap-{runtime}", restored)] = arguments.restores
        dropped = Case(f"{runtime} restored, page cache dropped", f"snap-{runtime}", restored, True)
        wanted[dropped] = arguments.dropped
    return {case: n for case, n in wanted.items() if n > 0}


def woven(missing: dict[Case, int]) -> Iterator[Case]:
    """All of them, each case spread evenly over the run."""
    places = ((index + 0.5) / n for n in missing.values() for index in range(n))
    names = [case for case, n in missing.items() for _ in range(n)]
    for _place, case in sorted(zip(places, names, strict=True), key=lambda pair: pair[0]):
        yield case


class Bench:
    """The engine, deployed once per runtime with snapshots and once without."""

    def __init__(self, session: LiveSession, engine: Engine, log: SampleLog) -> None:
        self._session = session
        self._engine = engine
        self._log = log
        self._apps: list[str] = []
        self._server = ""

    def deploy(self, cases: list[Case]) -> None:
        """Deploy what ``cases`` need; those that restore get their snapshot captured."""
        for app in sorted({case.app for case in cases if case.app is not None}):
            kind, _, runtime = app.partition("-")
            spec = self._engine.spec(self._session, app, runtime, snapshot=kind == "snap")
            self._server = spec["servers"][0]["name"]
            self._session.deploy_spec(spec)
            self._apps.append(app)
            if kind == "snap":
                self._capture(app, runtime)

    def _capture(self, app: str, runtime: str) -> None:
        self._check(self._ask(app))
        snapshot = self._session.wait_for_snapshot(app)
        self._log.note(runtime=runtime, snapshot=snapshot.model_dump(mode="json"))
        print(f"  {app}: snapshot of {snapshot.bytes / 1e9:.2f} GB", flush=True)

    def take(self, case: Case) -> None:
        """One sample, from zero. Raises unless the answer is right and came by the wanted path."""
        for app in self._apps:
            self._session.wait_until_zero(app)
        if case.drops_caches:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        fill_memory()
        before_bytes = disk_read_bytes(self._session.state.root)
        at, load = time.time(), os.getloadavg()[0]
        answer, record = self._start(case)
        read_bytes = disk_read_bytes(self._session.state.root) - before_bytes
        self._check(answer)
        self._log.add(
            Sample(
                case=case.name,
                at=at,
                first_token_s=round(answer.first_token_s, 4),
                answered_s=round(answer.total_s, 4),
                disk_bytes=read_bytes,
                load_average=round(load, 2),
                record=None if record is None else record.model_dump(mode="json"),
            )
        )
        print(f"  {case.name:>36}  {answer.total_s:7.2f} s  {read_bytes / 1e6:7.0f} MB read", flush=True)

    def measure_disk(self) -> None:
        """How fast the disk gives the largest file of chunks, in order and past the page cache."""
        files = (path for path in self._session.state.chunks.rglob("*") if path.is_file())
        largest = max(files, key=lambda path: path.stat().st_size)
        self._log.note(disk_bytes_per_s=round(sequential_read_bytes_per_s(largest)))

    def _start(self, case: Case) -> tuple[Answer, ColdStartRecord | None]:
        if case.app is None:
            spec = self._engine.spec(self._session, "host", "auto", snapshot=False)
            return host_server.cold_start(spec, self._engine.ask), None
        known_ids = {record.id for record in self._session.cold_starts(case.app)}
        answer = self._ask(case.app)
        record = self._session.wait_for_record(case.app, known_ids)
        if record.path is not case.path:
            raise RuntimeFailed(f"A start was {record.path}, not {case.path}: {record.fallback_reason}")
        return answer, record

    def _ask(self, app: str) -> Answer:
        return self._engine.ask(self._session.client, f"/{app}/{self._server}")

    def _check(self, answer: Answer) -> None:
        """Raises RuntimeFailed for an answer that is wrong, or other than the first one."""
        known = self._log.noted("answer")
        if not self._engine.is_right(answer.text) or (known and answer.text != known[0]):
            raise RuntimeFailed(f"A wrong answer: {answer.text!r}, expected {known[:1]}.")
        if not known:
            self._log.note(answer=answer.text)


def measure(arguments: argparse.Namespace, engine: Engine, log: SampleLog) -> None:
    """Take every sample that is still missing."""
    missing = {case: n - log.count(case.name) for case, n in cases_of(arguments).items()}
    missing = {case: n for case, n in missing.items() if n > 0}
    copies_missing = arguments.at_once > 0 and not log.noted("at_once")
    if not missing and not copies_missing:
        return
    with LiveSession() as session:
        bench = Bench(session, engine, log)
        bench.deploy(list(missing) if not copies_missing else list(cases_of(arguments)))
        for index, case in enumerate(woven(missing)):
            if index % _BANDWIDTH_EVERY == 0:
                bench.measure_disk()
            bench.take(case)
        bench.measure_disk()
        if copies_missing:
            for runtime in arguments.runtime:
                log.note(
                    runtime=runtime, at_once=restore_at_once(session, engine, runtime, arguments.at_once)
                )


def main() -> int:
    """Exit code 1 when a promise is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    parser.add_argument("--runtime", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--cold", type=int, default=5, help="cold starts per runtime")
    parser.add_argument("--restores", type=int, default=100, help="restores per runtime")
    parser.add_argument("--dropped", type=int, default=0, help="restores with the page cache dropped before")
    parser.add_argument("--host", type=int, default=5, help="cold starts on the bare host")
    parser.add_argument("--at-once", type=int, default=0, help="copies restored at once, in the end")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    engine = ENGINES[arguments.engine]
    name = f"engines-{engine.name}"
    machine = {k: v for k, v in report.machine().items() if k != "load_average_1min"}
    log = SampleLog(arguments.output / f"{name}.samples.jsonl", {"engine": engine.name, "machine": machine})
    measure(arguments, engine, log)
    result = evaluate(engine, machine, log, arguments.runtime)
    plot(log, arguments.runtime, arguments.output / name, engine.name)
    report.write(arguments.output, name, result, page(result))
    return 0 if all(promise["is_kept"] for promise in result["promises"]) else 1


if __name__ == "__main__":
    sys.exit(main())
