"""The server of the node tests: tells what a replica sees, does as it is told. Standard library only.

Environment: ``PORT`` and ``ADDRESS`` to listen on, ``STUBBORN`` to ignore SIGTERM, ``SLOW_S`` to start late.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

signals: list[str] = []
hooks: list[str] = []
held: list[bytearray] = []
throws = itertools.chain([6, 6, 6], itertools.cycle(range(1, 7)))
STARTED = random.random()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self._answer(getattr(self, f"on_{url.path.strip('/') or 'index'}")(**query))

    def do_POST(self) -> None:
        self.do_GET()

    def on_index(self) -> object:
        return "hello"

    def on_told(self) -> object:
        return json.loads(Path("/run/glowplug/env.json").read_text())

    def on_env(self) -> object:
        return dict(os.environ)

    def on_state(self) -> object:
        return {"signals": signals, "hooks": hooks, "started": STARTED, "hostname": socket.gethostname()}

    def on_resolve(self, name: str) -> object:
        return socket.gethostbyname(name)

    def on_hook(self, word: str) -> object:
        hooks.append(word)
        return hooks

    def on_read(self, path: str) -> object:
        return Path(path).read_text()

    def on_write(self, path: str, text: str) -> object:
        return Path(path).write_text(text)

    def on_random(self) -> object:
        return [random.random(), os.urandom(8).hex()]

    def on_clock(self) -> object:
        return time.time_ns()

    def on_die(self) -> object:
        """A die that happens to throw sixes first."""
        return next(throws)

    def on_say(self, text: str) -> object:
        print(text, flush=True)
        return text

    def on_hold(self, mib: str) -> object:
        held.append(bytearray(os.urandom(1 << 20) * int(mib)))
        return len(held)

    def on_exit(self, code: str) -> object:
        print(f"asked to exit with {code}", flush=True)
        os._exit(int(code))

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def on_usr1(_number: int, _frame: object) -> None:
    signals.append("USR1")


signal.signal(signal.SIGUSR1, on_usr1)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "STUBBORN" in os.environ else lambda *_: os._exit(0))
time.sleep(float(os.environ.get("SLOW_S", "0")))
address = (os.environ.get("ADDRESS", "0.0.0.0"), int(os.environ.get("PORT", "8000")))
server = ThreadingHTTPServer(address, Handler)
print("listening", flush=True)
server.serve_forever()
