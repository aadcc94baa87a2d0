"""Stands in for ``python -m glowplug.node``: answers on the socket; knows SIGTERM from SIGINT.

``GET /sandbox?code=PYTHON`` starts a child with a sandbox's name, which outlives the agent.
"""

import argparse
import contextlib
import http.server
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--state", type=Path, required=True)
parser.add_argument("--mute", action="store_true", help="never answer")
parser.add_argument("--stubborn", action="store_true", help="ignore signals")
options = parser.parse_args()
run = options.state / "run"


def sandbox_pids() -> list[int]:
    return [int(file.name) for file in (run / "replicas").iterdir()]


def start_sandbox(code: str) -> int:
    sandbox = subprocess.Popen(
        ["runsc", "-c", code, f"--root={run}/runsc"],
        executable=sys.executable,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    (run / "replicas" / str(sandbox.pid)).touch()
    return sandbox.pid


def stop(number: int, frame: object) -> None:
    (options.state / "agent-signal").write_text(signal.Signals(number).name)
    if number == signal.SIGINT:
        for pid in sandbox_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            (run / "replicas" / str(pid)).unlink()
    print(f"stand-in agent: {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(0)


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN if options.stubborn else stop)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        answer: dict[str, object] = {"agent_pid": os.getpid()}
        if url.path == "/sandbox":
            answer["sandbox_pid"] = start_sandbox(urllib.parse.parse_qs(url.query)["code"][0])
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *args: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


print("stand-in agent: started", file=sys.stderr, flush=True)
if options.mute:
    threading.Event().wait()
(run / "agent.sock").unlink(missing_ok=True)
Server(str(run / "agent.sock"), Handler).serve_forever()
