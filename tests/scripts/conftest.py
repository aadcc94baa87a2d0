"""A stand-in for a whole running Glowplug: the control API's answers, over real HTTP, and the two commands.

The demo talks to it as to the real thing, in a second instead of minutes; that the real thing behaves like
this is what `make demo` and the engine tests show.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

COMMAND = """#!{python}
import json, pathlib, os, sys
state = pathlib.Path(os.environ["GLOWPLUG_STATE"])
with open({calls!r}, "a") as calls:
    print(" ".join(sys.argv[1:]), file=calls)
if sys.argv[1] == "up":
    (state / "run").mkdir(parents=True, exist_ok=True)
    (state / "run" / "supervisor.json").write_text(json.dumps({{"port": {port}}}))
if sys.argv[1] in {failing!r}:
    sys.exit("this command is broken")
"""


class StandIn:
    """What the stand-in answers; tests change it before they run something against it."""

    def __init__(self) -> None:
        self.answers = itertools.repeat("The capital of France is Paris.")
        # A demo of two cycles: cold, twice from zero and once more, twice from parked, on the other node.
        restored = itertools.repeat("cpu_snapshot")
        self.paths = itertools.chain(["cold"], ["cpu_snapshot"] * 3, ["parked"] * 2, restored)
        self.is_parking = False
        self.fallback_reason: str | None = None
        self.snapshot_status = "good"
        self.chat_error: tuple[int, dict[str, object]] | None = None
        self.records: list[dict[str, object]] = []
        self.port = 0

    def ask(self) -> str:
        """Answer once, which is a start."""
        path = next(self.paths)
        total_s = {"cold": 80.0, "cpu_snapshot": 2.0, "parked": 0.03}[path]
        self.records.insert(0, {
            "id": f"cs-{len(self.records)}", "app": "chat", "server": "vllm", "deployment_id": "chat-v1",
            "replica_id": "chat-vllm-1", "node": "local", "path": path, "outcome": "answered",
            "started_at": 1e9, "total_s": total_s, "stages_s": {"host_init": total_s},
            "fallback_reason": self.fallback_reason,
        })  # fmt: skip
        return next(self.answers)

    def api(self, path: str) -> object:
        """The JSON of a GET."""
        snapshot = {
            "id": "sn-1", "app": "chat", "server": "vllm", "status": self.snapshot_status, "bytes": 10**9,
            "capture_s": 5.0, "key": "k", "reason": "it answered differently",
        }  # fmt: skip
        replica = {
            "id": "chat-vllm-1", "app": "chat", "server": "vllm", "deployment_id": "chat-v2",
            "node": "local", "state": "parked", "created_at": 1e9,
        }  # fmt: skip
        replicas = [replica] if self.is_parking else []
        known = {
            "/api/v1/replicas": replicas,
            "/api/v1/snapshots": [snapshot],
            "/api/v1/coldstarts": self.records,
        }
        return known[path]


class Handler(BaseHTTPRequestHandler):
    stand_in: ClassVar[StandIn]

    def do_GET(self):
        self._send(200, json.dumps(self.stand_in.api(urlsplit(self.path).path)).encode(), "application/json")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/v1/deployments":
            self.stand_in.is_parking = True
            self._send(200, json.dumps({"deployment": {"id": "chat-v2"}}).encode(), "application/x-ndjson")
            return
        if self.stand_in.chat_error is not None:
            status, error = self.stand_in.chat_error
            self._send(status, json.dumps(error).encode(), "application/json")
            return
        events = [{"choices": [{"delta": {"content": word}}]} for word in self.stand_in.ask().split(" ")]
        for event in events[1:]:
            event["choices"][0]["delta"]["content"] = " " + event["choices"][0]["delta"]["content"]
        first = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        lines = [f"data: {json.dumps(event)}\n\n" for event in (first, *events)]
        self._send(200, ("".join(lines) + "data: [DONE]\n\n").encode(), "text/event-stream")

    def _send(self, status, body, content_type):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def stand_in():
    """A running stand-in."""
    made = StandIn()
    handler = type("BoundHandler", (Handler,), {"stand_in": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def command_calls(stand_in, tmp_path, monkeypatch):
    """Puts a stand-in `glowplug` command in place; the file that lists its calls."""
    return install_command(stand_in, tmp_path, monkeypatch, failing=())


def install_command(stand_in, tmp_path, monkeypatch, failing):
    """A `glowplug` that starts nothing and points at the stand-in; commands in ``failing`` fail."""
    import live_session

    calls = tmp_path / "calls"
    command = tmp_path / "glowplug"
    command.write_text(
        COMMAND.format(python=sys.executable, calls=str(calls), port=stand_in.port, failing=failing)
    )
    command.chmod(0o755)
    monkeypatch.setattr(live_session, "GLOWPLUG", command)
    monkeypatch.setenv(live_session.STATE_VARIABLE, str(tmp_path / "state"))
    return calls
