"""PyTorch holding 1 GB of weights: a restore through Glowplug against the runtime's own restore command.

    .venv/bin/python benchmarks/coldstart/bench_torch.py --runs 12

Alternates between the two, so that both see the same machine: (1) a request to an app that is scaled to
zero, through the router, to its whole answer; (2) `runsc restore` of the same memory image with the same
bundle and flags, and the same request straight into the sandbox. Budget: p50 of (1) at most 1.3 x p50 of (2).
Writes torch.json and torch.md.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import report
from bare_restore import BareRestore, BareTimes
from live_session import EXAMPLES, LiveSession, raise_for_error

from glowplug.observe.quantiles import quantile
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import RuntimeFailed
from glowplug.types.replica import StartPath

WANTED_FACTOR = 1.3
_PR_SET_CHILD_SUBREAPER = 36


class TorchApp:
    """The deployed example and the one request that is asked of it."""

    def __init__(self, session: LiveSession, megabytes: int, runtime: str = "runsc") -> None:
        self._session = session
        spec = session.load_spec(EXAMPLES / "torch_server.py")
        (server,) = spec["servers"]
        server["scaling"] |= {"scaledown_window_s": 1.0, "parked_window_s": 0.0}
        server["runtime"] = runtime
        calls = server["snapshot"]["warmup"] or [server["ready"]]
        self.name: str = spec["name"]
        self.port: int = server["port"]
        self.method: str = calls[0]["method"]
        self.path: str = calls[0]["path"]
        self.body: Any = calls[0]["json_body"]
        self._url = f"/{self.name}/{server['name']}{self.path}"
        self.expected: bytes | None = None
        self.megabytes = megabytes
        session.deploy_spec(spec)

    def ask(self) -> tuple[float, ColdStartRecord]:
        """From zero to the answer: seconds, and the record. Raises when the answer is another one."""
        self._session.wait_until_zero(self.name)
        known_ids = {record.id for record in self._session.cold_starts(self.name)}
        started = time.monotonic()
        response = self._session.client.request(
            self.method, self._url, json=self.body, headers={"connection": "close"}
        )
        answered_s = time.monotonic() - started
        raise_for_error(response)
        self.expected = self.expected if self.expected is not None else response.content
        if response.content != self.expected:
            raise RuntimeFailed(f"The app answered {response.content!r}, expected {self.expected!r}.")
        return answered_s, self._session.wait_for_record(self.name, known_ids)

    def ask_restored(self) -> tuple[float, ColdStartRecord]:
        """Like :meth:`ask`; raises unless the start was a restore."""
        answered_s, record = self.ask()
        if record.path is not StartPath.CPU_SNAPSHOT:
            raise RuntimeFailed(f"A start was {record.path}: {record.fallback_reason}")
        return answered_s, record


def measure(megabytes: int, runs: int) -> dict[str, Any]:
    """Cold once, then ``runs`` times restored and bare in turn."""
    machine = report.machine()
    # Sandboxes of the bare runs become our children, so that we can reap them.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with (
        tempfile.TemporaryDirectory(prefix="glowplug-bare-", dir="/var/tmp") as work,
        LiveSession({"GLOWPLUG_TORCH_MB": str(megabytes)}) as session,
    ):
        app = TorchApp(session, megabytes)
        cold_s, _record = app.ask()
        snapshot = session.wait_for_snapshot(app.name)
        _seconds, record = app.ask_restored()
        state = session.state
        bare = BareRestore(
            state.replicas / record.replica_id, state.lazy / "mounts" / snapshot.content, Path(work) / "bare"
        )
        restored: list[tuple[float, ColdStartRecord]] = []
        bare_times: list[BareTimes] = []
        for index in range(runs):
            seconds, record = app.ask_restored()
            session.wait_until_zero(app.name)
            times = bare.run(index, app.port, app.method, app.path, app.body, app.expected or b"")
            print(f"  glowplug {seconds:.3f} s   bare {times.answered_s:.3f} s", flush=True)
            restored.append((seconds, record))
            bare_times.append(times)
    ours = sorted(seconds for seconds, _record in restored)
    theirs = sorted(times.answered_s for times in bare_times)
    return {
        "machine": machine,
        "megabytes": megabytes,
        "snapshot_bytes": snapshot.bytes,
        "cold_s": cold_s,
        "restored": [
            {"answered_s": seconds, "record": record.model_dump(mode="json")} for seconds, record in restored
        ],
        "bare": [asdict(times) for times in bare_times],
        "restored_quantiles_s": report.quantiles(ours),
        "bare_quantiles_s": report.quantiles(theirs),
        "factor_p50": quantile(ours, 0.5) / quantile(theirs, 0.5),
    }


def page(result: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    machine, factor = result["machine"], result["factor_p50"]
    rows = [
        (name, f"{ours:.3f} s", f"{result['bare_quantiles_s'][name]:.3f} s")
        for name, ours in result["restored_quantiles_s"].items()
    ]
    return [
        f"# PyTorch server with {result['megabytes']} MB of weights: restored against the bare runtime",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load {machine['load_average_1min']}; "
        f"{len(result['bare'])} alternating runs; "
        f"cold start {result['cold_s']:.1f} s; snapshot {result['snapshot_bytes'] / 1e9:.2f} GB.",
        "",
        *report.table(("quantile", "through Glowplug", "bare `runsc restore`"), rows),
        "",
        f"At p50 Glowplug takes {factor:.2f} x the bare runtime (budget {WANTED_FACTOR} x: "
        f"{'met' if factor <= WANTED_FACTOR else 'MISSED'}).",
    ]


def main() -> int:
    """Exit code 1 when the budget is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="weights the server holds")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    result = measure(arguments.megabytes, arguments.runs)
    report.write(arguments.output, "torch", result, page(result))
    return 0 if result["factor_p50"] <= WANTED_FACTOR else 1


if __name__ == "__main__":
    sys.exit(main())
