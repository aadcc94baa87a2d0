"""A whole Glowplug as its user has it: a state directory, a port, the ``glowplug`` command, HTTP.

Nothing here reaches into the product: it runs the command, calls the API and reads ``/proc``. What tests do
again and again goes through the API, as each run of the command takes half a second of a processor to begin.
Every wait has a deadline, and leaving the ``with`` block runs ``glowplug down``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from tests.e2e import leftovers

from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.paths import StateDir
from glowplug.types.replica import Purpose, ReplicaState, ReplicaView, SnapshotStatus, SnapshotView

GLOWPLUG = Path(sys.executable).with_name("glowplug")
TOOLBOX = Path(__file__).with_name("toolbox_server.py")
POLL_S = 0.1
"""Each look is work for control and agent, which are to get on with what is waited for."""
COMMAND_TIMEOUT_S = 120.0
UP_TIMEOUT_S = "100"
LEFTOVERS_TIMEOUT_S = 120.0
_VARIABLES_OF_OURS = ("GLOWPLUG_STATE", "GLOWPLUG_URL", "GLOWPLUG_TOKEN")

_Result = TypeVar("_Result")


class Live:
    """``with Live() as live``: a running Glowplug of one's own, on ``host`` (default: this machine only).

    ``environment`` configures its node.
    """

    def __init__(self, host: str | None = None, **environment: str) -> None:
        # Not below /tmp, which is memory on many machines; and short, for the names of Unix sockets.
        self.state = StateDir(Path(tempfile.mkdtemp(prefix="gp-e2e-", dir="/var/tmp")))
        self.environment = {k: v for k, v in os.environ.items() if k not in _VARIABLES_OF_OURS}
        # Three tests at once on two cores: what is asked of a region may take its time.
        self.environment |= {"GLOWPLUG_REGION_WAIT": "30"}
        self.environment |= {"GLOWPLUG_STATE": str(self.state.root), **environment}
        self.apps: set[str] = set()
        self.url = ""
        self._host = host
        self.keeps_logs = False

    def __enter__(self) -> Live:
        try:
            host = () if self._host is None else ("--host", self._host)
            self.cli("up", "--port", "0", *host, "--timeout", UP_TIMEOUT_S)
            self.url = f"http://127.0.0.1:{json.loads(self.state.supervisor.read_text())['port']}"
            self.http = httpx.Client(base_url=self.url, timeout=240.0, trust_env=False)
        except BaseException:
            self.cli("down", code=None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.cli("down", timeout_s=120)
        left = leftovers.of_state(self.state) + leftovers.of_apps(self.state, self.apps)
        assert left == [], f"after `glowplug down` (logs: {self.state.logs})"
        if not self.keeps_logs:
            shutil.rmtree(self.state.root)
            return
        for item in self.state.root.iterdir():
            if item.is_dir() and item != self.state.logs:
                shutil.rmtree(item)
            elif not item.is_dir():
                item.unlink()

    # -- the command ---------------------------------------------------------------------------------

    def cli(
        self,
        *arguments: str,
        code: int | None = 0,
        timeout_s: float = COMMAND_TIMEOUT_S,
        cwd: Path | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``glowplug`` to its end; it must exit with ``code`` (None: with any)."""
        done = subprocess.run(
            [str(GLOWPLUG), *arguments],
            env={**self.environment, **environment},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        words = f"glowplug {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        assert code is None or done.returncode == code, words
        return done

    def listing(self, *arguments: str) -> Any:
        """What a command prints with ``--json``."""
        return json.loads(self.cli(*arguments, "--json").stdout)

    def new_name(self, word: str) -> str:
        """A name for an app that nobody else on this machine uses; remembered for the search for leaks."""
        name = f"{word[:13]}-{secrets.token_hex(3)}"
        self.apps.add(name)
        return name

    def deploy(self, file: Path, name: str, **environment: str) -> None:
        """``glowplug deploy FILE --name NAME``."""
        self.cli("deploy", str(file), "--name", name, **environment)

    # -- what there is -------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """JSON of a GET that must succeed."""
        answer = self.http.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def restored(self, app: str) -> ColdStartRecord:
        """Ask the toolbox that serves ``app``, which is at zero, and must be restored; the start's record."""
        answer = self.get(f"/{app}/web/who")
        record = self.cold_starts(app)[0]
        assert answer["restored"] is True, f"{record.path}: {record.fallback_reason}"
        return record

    def replicas(self, app: str) -> list[ReplicaView]:
        """Serving replicas of ``app`` that are not over."""
        views = (ReplicaView.model_validate(item) for item in self.get("/api/v1/replicas"))
        return [v for v in views if v.app == app and v.purpose is Purpose.SERVE and not v.state.is_final]

    def ready(self, app: str) -> list[ReplicaView]:
        """Those that take requests."""
        return [view for view in self.replicas(app) if view.state is ReplicaState.READY]

    def snapshots(self, app: str) -> list[SnapshotView]:
        """Snapshots of ``app``, good or not."""
        views = (SnapshotView.model_validate(item) for item in self.get("/api/v1/snapshots"))
        return [view for view in views if view.app == app]

    def snapshot(self, snapshot_id: str) -> SnapshotView:
        """One snapshot, as ``glowplug snapshot show`` shows it."""
        return SnapshotView.model_validate(self.get(f"/api/v1/snapshots/{snapshot_id}"))

    def deployments(self, app: str) -> list[dict[str, Any]]:
        """Versions of ``app``, newest first, as ``glowplug deployments`` lists them."""
        return list(self.get(f"/api/v1/deployments?app={app}"))

    def cold_starts(self, app: str) -> list[ColdStartRecord]:
        """Newest first, as ``glowplug coldstarts APP`` shows them."""
        records = self.get(f"/api/v1/coldstarts?app={app}")
        return [ColdStartRecord.model_validate(item) for item in records]

    def server_status(self, app: str) -> dict[str, Any]:
        """``glowplug status`` about the first server of ``app``."""
        apps = {item["name"]: item for item in self.get("/api/v1/status")["apps"]}
        return dict(apps[app]["servers"][0])

    def daemon_metric(self, name: str) -> float:
        """A number of the blob daemon's, of all its images; waits while it is too busy to tell the agent."""
        line = f"glowplug_blob_daemon_{name} "
        transport = httpx.HTTPTransport(uds=str(self.state.agent_socket))
        with httpx.Client(transport=transport, base_url="http://agent", timeout=60.0) as agent:
            told = self.wait_for(
                lambda: [text for text in agent.get("/metrics").text.splitlines() if text.startswith(line)],
                f"the metric {name}",
            )
        return float(told[0].removeprefix(line))

    def pid_of(self, room: str) -> int:
        """The process of ``control`` or ``node``."""
        return self.wait_for(lambda: self._find_pid(room), f"a process of {room}")

    def _find_pid(self, room: str) -> int | None:
        for process in Path("/proc").iterdir():
            try:
                words = (process / "cmdline").read_text().split("\0") if process.name.isdigit() else []
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[1:3] == ["-m", f"glowplug.{room}"] and str(self.state.root) in words:
                return int(process.name)
        return None

    def daemon_pid(self, part: str) -> int:
        """The blob daemon's ``worker`` or ``holder``."""
        word = {"worker": "glowplug.image.lazy.worker", "holder": "holder.py"}[part]
        for process in Path("/proc").iterdir():
            try:
                words = (process / "cmdline").read_text().split("\0") if process.name.isdigit() else []
            except (FileNotFoundError, ProcessLookupError):
                continue
            is_ours = any(str(self.state.root) in argument for argument in words)
            if is_ours and any(argument.endswith(word) for argument in words[:4]):
                return int(process.name)
        raise AssertionError(f"no {part} runs")

    # -- waiting -------------------------------------------------------------------------------------

    def wait_for(self, look: Callable[[], _Result | None], what: str, timeout_s: float = 120.0) -> _Result:
        """Look until there is something; what was found. Fails at the deadline, naming ``what``."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what} (logs: {self.state.logs})"
            time.sleep(POLL_S)
        return found

    def wait_until_zero(self, app: str, timeout_s: float = 120.0) -> None:
        """Until nothing serves ``app`` any more."""
        self.wait_for(lambda: not self.replicas(app), f"{app} to scale to zero", timeout_s)

    def wait_for_snapshot(self, app: str, timeout_s: float = 150.0) -> SnapshotView:
        """Until ``app`` has a good snapshot."""

        def look() -> SnapshotView | None:
            views = self.snapshots(app)
            bad = [view.reason for view in views if view.status is SnapshotStatus.QUARANTINED]
            assert not bad, f"the snapshot of {app} is no good: {bad}"
            return next((view for view in views if view.status is SnapshotStatus.GOOD), None)

        return self.wait_for(look, f"a snapshot of {app}", timeout_s)

    def rest(self, app: str) -> None:
        """Stop what serves ``app`` and wait until it has gone: zero, without waiting for its window."""
        answer = self.http.post(f"/api/v1/apps/{app}/stop")
        assert answer.status_code == 200, answer.text
        self.wait_until_zero(app)

    def remove(self, apps: set[str]) -> None:
        """Undeploy ``apps``; then nothing of them may be left, captures included."""
        for app in apps:
            answer = self.http.post(f"/api/v1/apps/{app}/stop?remove=true")
            assert answer.status_code in (200, 404), answer.text
        deadline = time.monotonic() + LEFTOVERS_TIMEOUT_S
        while left := leftovers.of_apps(self.state, apps):
            assert time.monotonic() < deadline, f"still there (logs: {self.state.logs}): {left}"
            time.sleep(POLL_S)


def resident_bytes(pid: int) -> int:
    """Memory of a process (VmRSS, proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmRSS")
