"""Stands in for ``python -m glowplug.control``: answers /healthz with its pid on the inherited socket."""

import argparse
import http.server
import os
import signal
import socket
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--state", required=True)
parser.add_argument("--fd", type=int, required=True)
parser.add_argument("--crash", action="store_true")
options = parser.parse_args()
if options.crash:
    print("stand-in control: no database here", file=sys.stderr, flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def server_bind(self) -> None:
        self.server_name, self.server_port = "stand-in", 0

    def server_activate(self) -> None:
        pass


server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=options.fd)
print("stand-in control: serving", file=sys.stderr, flush=True)
server.serve_forever()
