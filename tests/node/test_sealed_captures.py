"""A capture into memory: what the kernel counts as the sandbox's own must not end it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.node.cases import captured, in_runtime
from tests.node.live_agent import live_agent
from tests.runtime.conftest import RUNC_BY_NIGHT

from glowplug.snapshot.sealing.keys import FILE_VARIABLE, make_key_file

pytestmark = pytest.mark.sandbox

MEMORY_BYTES = 320 << 20  # runsc's own 192 MiB come on top
# More than half of what its cgroup may have, and none of it zeros.
SERVER = """
import http.server, os
block = os.urandom(300 << 20)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(block[-8:].hex().encode())
    def log_message(self, *words): pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_a_server_that_fills_its_memory_is_captured_sealed(
    fit_machine: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    key = make_key_file(tmp_path / "keys")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "keys"))
    with live_agent(root) as own_agent, in_runtime(own_agent, runtime) as agent:
        server = agent.server("python3", "-c", SERVER, snapshot={}, resources={"memory_bytes": MEMORY_BYTES})
        snapshot = captured(agent, server)
        assert snapshot["sealed_with"] == key.id
        assert snapshot["bytes"] > 300 << 20
        copy = agent.start(server)
        assert copy["path"] == "cpu_snapshot"
        agent.stop(copy["id"], grace_s=0)
        assert list(agent.state.unsealed.iterdir()) == []
