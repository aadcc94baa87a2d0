"""Glowplug on a private state directory for the length of a ``with`` block: for the demo and benchmarks.

A :class:`LiveSession` does what a user would type (``glowplug up``, ``deploy``, ``down``) and reads the same
control API; it reaches into nothing. It owns its state directory and everything that runs from it: leaving
the block, also by Ctrl-C or an error, stops all of it. Every wait has a deadline.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import DeadlineExceeded, GlowplugError, RuntimeFailed, SnapshotInvalid
from glowplug.types.paths import StateDir
from glowplug.types.replica import ReplicaView, SnapshotStatus, SnapshotView

GLOWPLUG = Path(sys.executable).with_name("glowplug")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CACHE = Path(os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug"))
STATE_VARIABLE = "GLOWPLUG_DEMO_STATE"
COMMAND_TIMEOUT_S = 300.0
POLL_S = 0.05
_LOAD_SPEC = """
import json, pathlib, sys
from glowplug.sdk.loader import load_app
json.dump(load_app(pathlib.Path(sys.argv[1])).to_spec()[0], sys.stdout)
"""


class LiveSession:
    """``with LiveSession() as session``: a running Glowplug of one's own, on a free port.

    ``node`` tells apart several whose state directories are named after the same ``GLOWPLUG_DEMO_STATE``.
    """

    def __init__(self, extra_environment: dict[str, str] | None = None, node: str = "") -> None:
        named = os.environ.get(STATE_VARIABLE)
        self._is_ours_to_remove = named is None
        # Not below /tmp, which is memory on many machines: snapshots are as large as a server's memory.
        root = (
            Path(named + node) if named else Path(tempfile.mkdtemp(prefix="glowplug-demo-", dir="/var/tmp"))
        )
        self.state = StateDir(root.absolute())
        self._environment = {
            **os.environ,
            "GLOWPLUG_VLLM_VENV": str(CACHE / "engines" / "vllm-0.32.0"),
            "GLOWPLUG_MODEL_DIR": str(CACHE / "models" / "smollm2-135m-instruct"),
            **(extra_environment or {}),
            "GLOWPLUG_STATE": str(self.state.root),
        }
        self.url = ""
        self._client: httpx.Client | None = None

    def __enter__(self) -> LiveSession:
        try:
            self.glowplug("up", "--port", "0")
            record = json.loads(self.state.supervisor.read_text())
            self.url = f"http://127.0.0.1:{int(record['port'])}"
            self._environment["GLOWPLUG_URL"] = self.url
            # No pooled connection is kept: each question is a new caller's.
            self._client = httpx.Client(base_url=self.url, timeout=httpx.Timeout(60.0, read=900.0))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._client is not None:
            self._client.close()
        # A second, impatient Ctrl-C must not leave a model server behind; `down` has a deadline of its own.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.glowplug("down")
            # Only now: state of something that could not be stopped is worth keeping.
            if self._is_ours_to_remove:
                shutil.rmtree(self.state.root)
        finally:
            signal.signal(signal.SIGINT, previous)

    @property
    def client(self) -> httpx.Client:
        """The HTTP client, bound to this session's address."""
        if self._client is None:
            raise RuntimeError("the session has not been entered")
        return self._client

    def glowplug(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a ``glowplug`` command to its end and return what it printed. Raises RuntimeFailed."""
        command = [str(GLOWPLUG), *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(
                f"`glowplug {' '.join(arguments)}` took over {timeout_s:.0f} s."
            ) from error
        if done.returncode != 0:
            raise RuntimeFailed(
                f"`glowplug {' '.join(arguments)}` failed (exit code {done.returncode}):\n"
                f"{done.stdout}{done.stderr}".rstrip()
            )
        return done.stdout

    def load_spec(self, app_file: Path) -> dict[str, Any]:
        """The specification that ``app_file`` describes, in this session's environment."""
        done = subprocess.run(
            [sys.executable, "-c", _LOAD_SPEC, str(app_file)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeFailed(f"{app_file} cannot be loaded:\n{done.stderr}")
        spec: dict[str, Any] = json.loads(done.stdout)
        return spec

    def deploy_spec(self, spec: dict[str, Any], secrets: dict[str, str] | None = None) -> dict[str, Any]:
        """Deploy a specification through the API, for variants that no file describes."""
        body = {"app": spec, "secrets": secrets or {}}
        last: dict[str, Any] = {}
        with self.client.stream("POST", "/api/v1/deployments", json=body) as response:
            raise_for_error(response)
            for line in response.iter_lines():
                if line.strip():
                    last = json.loads(line)
        if last.get("error"):
            raise GlowplugError.from_dict(last["error"])
        deployment = last.get("deployment")
        if not isinstance(deployment, dict):
            raise RuntimeFailed("The deployment's progress ended without a result.", last=last)
        return deployment

    def get(self, path: str, **parameters: Any) -> Any:
        """JSON of one API call."""
        response = self.client.get(path, params=parameters, timeout=30.0)
        raise_for_error(response)
        return response.json()

    def replicas(self, app: str) -> list[ReplicaView]:
        """All replicas of ``app`` that are not over, captures included."""
        views = (ReplicaView.model_validate(item) for item in self.get("/api/v1/replicas"))
        return [view for view in views if view.app == app and not view.state.is_final]

    def snapshots(self, app: str) -> list[SnapshotView]:
        """The snapshots of ``app``."""
        views = (SnapshotView.model_validate(item) for item in self.get("/api/v1/snapshots"))
        return [view for view in views if view.app == app]

    def cold_starts(self, app: str) -> list[ColdStartRecord]:
        """The records of ``app``, newest first."""
        listed = self.get("/api/v1/coldstarts", app=app, limit=1000)
        return [ColdStartRecord.model_validate(item) for item in listed]

    def stop(self, app: str) -> None:
        """Stop the replicas of ``app``; the next request wakes it."""
        raise_for_error(self.client.post(f"/api/v1/apps/{app}/stop"))

    def wait_until_zero(self, app: str, deadline_s: float = 120.0) -> float:
        """Until nothing of ``app`` runs, not even what is draining. Returns the seconds it took."""
        return self.wait(lambda: not self.replicas(app), deadline_s, f"{app} to scale to zero")

    def wait_for_snapshot(
        self, app: str, deadline_s: float = 900.0, progress: Callable[[str], None] = lambda _text: None
    ) -> SnapshotView:
        """Until ``app`` has a good snapshot and its capture replica is gone."""
        found: list[SnapshotView] = []

        def is_good() -> bool:
            found[:] = self.snapshots(app)
            progress(_capture_progress(found, self.replicas(app)))
            bad = next((view for view in found if view.status is SnapshotStatus.QUARANTINED), None)
            if bad is not None:
                raise SnapshotInvalid(f"Snapshot {bad.id} is quarantined: {bad.reason}", snapshot=bad.id)
            return any(view.status is SnapshotStatus.GOOD for view in found)

        self.wait(is_good, deadline_s, f"a good snapshot of {app}", poll_s=0.25)
        return next(view for view in found if view.status is SnapshotStatus.GOOD)

    def wait_for_record(self, app: str, known_ids: set[str], deadline_s: float = 10.0) -> ColdStartRecord:
        """The newest record of ``app`` that is not among ``known_ids``."""
        fresh: list[ColdStartRecord] = []

        def is_there() -> bool:
            fresh[:] = [record for record in self.cold_starts(app) if record.id not in known_ids]
            return bool(fresh)

        self.wait(is_there, deadline_s, f"the cold-start record of {app}")
        return fresh[0]

    def wait(
        self, is_done: Callable[[], bool], deadline_s: float, what: str, poll_s: float = POLL_S
    ) -> float:
        """Poll ``is_done`` until it is true; returns the seconds. Raises DeadlineExceeded naming ``what``."""
        started = time.monotonic()
        while not is_done():
            if time.monotonic() - started > deadline_s:
                raise DeadlineExceeded(
                    f"Waited {deadline_s:.0f} s for {what} in vain.",
                    remedy=f"Look at the logs in {self.state.logs}.",
                    snapshots=self.get("/api/v1/snapshots"),
                )
            time.sleep(poll_s)
        return time.monotonic() - started


def _capture_progress(snapshots: list[SnapshotView], replicas: list[ReplicaView]) -> str:
    """What the capture is at, in a few words."""
    capturing = [view for view in snapshots if view.status is SnapshotStatus.CAPTURING]
    starting = [view for view in replicas if view.purpose == "capture"]
    if starting and starting[0].stage is not None:
        return f"capture replica: {starting[0].state.value}, {starting[0].stage.value}"
    if starting:
        return f"capture replica: {starting[0].state.value}"
    return "writing and trying the snapshot" if capturing else "waiting for the next step of the capture"


def raise_for_error(response: httpx.Response) -> None:
    """Raise the typed error in an answer that is not a success."""
    if response.is_success:
        return
    text = response.read().decode(errors="replace")
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, dict) and "message" in data:
        raise GlowplugError.from_dict(data)
    raise RuntimeFailed(f"{response.request.url} answered {response.status_code}: {text[:2000]}")


def server_sent_events(lines: Iterator[str]) -> Iterator[str]:
    """The ``data`` of each event of an OpenAI-style stream, up to its ``[DONE]``."""
    for line in lines:
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield data
