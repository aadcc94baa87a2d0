"""The server in these tests' sandboxes: says what it was asked, and writes down what it did.

Standard library only; its text is handed to the sandbox's own Python with ``-c``. What was posted is done
once it is in the log, which outlives the replica.
"""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORK_S = 0.05


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer({"asked": self.path})

    def do_POST(self):
        name = self.rfile.read(int(self.headers["Content-Length"])).decode()
        print(f"did {name}", flush=True)
        time.sleep(WORK_S)
        self._answer({"did": name})

    def _answer(self, answer):
        told = json.loads(Path("/run/glowplug/env.json").read_text())
        body = json.dumps({**answer, "replica_id": told["replica_id"]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


Server(("0.0.0.0", 8000), Handler).serve_forever()
