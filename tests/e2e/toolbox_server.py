"""The server in these tests' sandboxes: answers about itself, and misbehaves on request.

Standard library only; its text is handed to the sandbox's own Python with ``-c``. ``identity`` is drawn at
start, so two answers with one identity come from one memory image.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--version", default="1")
parser.add_argument("--say", default="")
parser.add_argument("--exit-code", type=int)
parser.add_argument("--start-delay-s", type=float, default=0.0)
parser.add_argument("--allocate-bytes", type=int, default=0)
OPTIONS = parser.parse_args()
IDENTITY = os.urandom(8).hex()
CHUNK_BYTES = 1 << 20


class Server(ThreadingHTTPServer):
    request_queue_size = 2048
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, and the second would wait for 40 ms

    def do_GET(self):
        url = urlsplit(self.path)
        answer = {"identity": IDENTITY, "version": OPTIONS.version, "asked": self.path}
        if url.path == "/slow":
            time.sleep(float(parse_qs(url.query)["seconds"][0]))
        if url.path in ("/slow", "/who"):
            told = json.loads(Path("/run/glowplug/env.json").read_text())
            answer |= {"replica_id": told["replica_id"], "restored": told["restored"]}
        self._answer(answer)

    def do_POST(self):
        left = int(self.headers["Content-Length"])
        taken = 0
        is_zero = True
        while left:
            chunk = self.rfile.read(min(left, CHUNK_BYTES))
            if not chunk:
                return
            left -= len(chunk)
            taken += len(chunk)
            is_zero = is_zero and chunk == bytes(len(chunk))
        self._answer({"bytes": taken, "is_zero": is_zero})

    def _answer(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


if OPTIONS.say:
    print(OPTIONS.say, flush=True)
if OPTIONS.exit_code is not None:
    sys.exit(OPTIONS.exit_code)
held = [bytearray(b"x") * CHUNK_BYTES for _ in range(OPTIONS.allocate_bytes // CHUNK_BYTES)]
time.sleep(OPTIONS.start_delay_s)
if OPTIONS.port == 0:
    threading.Event().wait()
Server(("0.0.0.0", OPTIONS.port), Handler).serve_forever()
