"""Another control plane takes over real replicas of a real agent, and gives them back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.e2e.conftest import Apps
from tests.e2e.live import Live
from tests.e2e.test_restarts import supervisor_pid
from tests.postgres import PostgresServer

from glowplug.types.paths import StateDir

pytestmark = [pytest.mark.sandbox, pytest.mark.nightly]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="PostgreSQL needs glowplug[postgres]")
    with closing(PostgresServer()) as server:
        yield server.url


@pytest.fixture
def own(database: str) -> Iterator[Live]:
    with Live(GLOWPLUG_DATABASE_URL=database) as own:
        yield own


@contextmanager
def another_control_plane(own: Live) -> Iterator[str]:
    """Of a state directory of its own, from which the same agent can be reached; where it answers."""
    state = StateDir(Path(tempfile.mkdtemp(prefix="gp-e2e-", dir="/var/tmp")))
    state.create()
    state.agent_socket.symlink_to(own.state.agent_socket)
    with (state.root / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "glowplug.control", "--state", str(state.root), "--port", "0"],
            env={**own.environment, "GLOWPLUG_STATE": str(state.root)},
            stderr=log,
        )
    try:
        found = own.wait_for(
            lambda: re.search(r"serving on \S+ port (\d+)", (state.root / "log").read_text()), "the other one"
        )
        yield f"http://127.0.0.1:{found.group(1)}"
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(state.root)


def test_replicas_pass_to_the_next_leader_and_back(own: Live, tmp_path: Path) -> None:
    app = Apps(own, tmp_path).deploy(word="takeover", snapshot=False)
    identity = app.ask()["identity"]
    assert "It leads, term" in own.cli("status").stdout

    def answers_at(url: str) -> bool:
        answer = httpx.get(f"{url}{app.path}/", timeout=60, trust_env=False)
        return answer.status_code == 200 and answer.json()["identity"] == identity

    def stands_by() -> bool:
        try:
            return bool(httpx.get(f"{own.url}/healthz", timeout=5).json()["role"] == "standby")
        except httpx.HTTPError:
            return False

    with another_control_plane(own) as other:
        supervisor = supervisor_pid(own)
        os.kill(supervisor, signal.SIGSTOP)  # else it starts the next one at once, and that goes on leading
        os.kill(own.pid_of("control"), signal.SIGKILL)
        own.wait_for(lambda: answers_at(other), "the other one to take over", 60)
        os.kill(supervisor, signal.SIGCONT)
        own.wait_for(stands_by, "the first one's successor to stand by", 60)
        assert "stands by" in own.cli("status").stdout
        refused = own.cli("stop", app.name, code=1)
        assert other in refused.stderr
    own.wait_for(lambda: answers_at(own.url), "the first one to lead again", 60)
    assert len(own.replicas(app.name)) == 1
