"""The runner as a real process, seeing only what a container gives it, spoken to over real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.ports import free_port

START_S = 60.0


class RunnerProcess:
    """``with RunnerProcess(...) as runner``: started on entering, gone after leaving."""

    def __init__(
        self,
        library: Path,
        app_file: Path,
        target: str,
        kind: str = "cls",
        *,
        site_packages: bool = False,
        arguments: tuple[str, ...] = (),
        wrapper: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="runner-")
        self._log = Path(self._folder.name) / "log"
        # -S: no site-packages, as in a user's image, which has nothing of ours installed.
        flags = [] if site_packages else ["-S"]
        self._command = [
            *wrapper, sys.executable, *flags, "-m", "glowplug.sdk.runner", "--module", str(app_file),
            "--target", target, "--kind", kind, "--host", "127.0.0.1", "--port", str(self.port), *arguments,
        ]  # fmt: skip
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(library),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._last_words = ""
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> RunnerProcess:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        self._last_words = self.log
        self._folder.cleanup()

    @property
    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else self._last_words

    def connect(self, timeout_s: float = 60.0) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any]:
        """Status and decoded JSON of one request."""
        data = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        connection = self.connect()
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def call(self, method: str, **arguments: Any) -> tuple[int, Any]:
        """POST a call, as the router does."""
        return self.ask("POST", f"/{method}", arguments)

    def probe(self, method: str, **arguments: Any) -> tuple[int, Any]:
        """POST a call, as the agent does: allowed before activation."""
        return self.ask("POST", f"/{method}", arguments, headers={"x-glowplug-probe": "1"})

    def wait_ready(self) -> RunnerProcess:
        """Until ``ready`` says 200. Raises if the process ends or takes too long."""
        self.wait_status(200)
        return self

    def wait_status(self, wanted: int) -> None:
        """Until ``ready`` answers with this status."""
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                raise AssertionError(f"the runner exited with {self.process.returncode}:\n{self.log}")
            try:
                if self.ask("GET", "/.glowplug/ready")[0] == wanted:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"not ready after {START_S} s:\n{self.log}")

    def activate(self, *, restored: bool = False, **env: str) -> tuple[int, Any]:
        """What the agent sends before a replica serves."""
        return self.ask("POST", "/.glowplug/activate", {"env": env, "restored": restored})

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
