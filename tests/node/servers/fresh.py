"""Draws from every source of randomness that it can find, as a plain command and as a class for our runner.

Everything is seeded equally before the snapshot: what a copy draws is its own only if it was reseeded. NumPy
and torch take part where they are installed.
"""

import json
import multiprocessing
import os
import random
import secrets
import socket
import ssl
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import glowplug as gp
from glowplug import hooks

try:
    import numpy
    import torch
except ImportError:
    numpy = torch = None

OWN = [random.Random(7)]
random.seed(7)
ssl.RAND_bytes(16)  # initialises OpenSSL's generator, whose state is memory like any other
if numpy is not None:
    numpy.random.seed(7)
    torch.manual_seed(7)
    OWN += [numpy.random.default_rng(7), numpy.random.RandomState(7), torch.Generator().manual_seed(7)]


def draw():
    drawn = {
        "random": random.random(),
        "own random": OWN[0].random(),
        "openssl": ssl.RAND_bytes(8).hex(),
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "secrets": secrets.token_hex(8),
        "urandom": os.urandom(8).hex(),
    }
    if numpy is not None:
        drawn |= {
            "numpy": numpy.random.rand(),
            "torch": torch.rand(1).item(),
            "own numpy": OWN[1].random(),
            "own numpy, old": OWN[2].rand(),
            "own torch": torch.rand(1, generator=OWN[3]).item(),
        }
    return drawn


def look():
    return {
        "drawn": draw(),
        "hostname": socket.gethostname(),
        "resolves": socket.gethostbyname(socket.gethostname()),
        "name": os.environ.get("HOSTNAME"),
        "token": os.environ.get("TOKEN"),
        "time": time.time(),
        "monotonic": time.monotonic(),
    }


app = gp.App("fresh")


@app.cls(snapshot=True)
class Fresh:
    @gp.enter(snap=True)
    def load(self):
        self.loaded = time.time(), time.monotonic()

    @gp.enter(snap=False)
    def own(self):
        hooks.reseed(*OWN)

    @gp.method()
    def look(self):
        return {**look(), "loaded": self.loaded, "done": [], "child": None}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        child = workers.apply(draw)
        body = json.dumps({**look(), "loaded": LOADED, "done": DONE, "child": child}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def reseed():
    if Path("/data/broken").exists():
        raise ConnectionError("the database is gone")
    hooks.reseed(*OWN)


if __name__ == "__main__":
    LOADED = time.time(), time.monotonic()
    DONE = []
    hooks.before_snapshot(lambda: DONE.append("first registered, last run"))
    hooks.before_snapshot(lambda: DONE.append("last registered, first run"))
    hooks.after_restore(reseed)
    hooks.after_restore(lambda: DONE.append(f"restored with {os.environ.get('TOKEN')}"))
    workers = multiprocessing.get_context("fork").Pool(1)
    sys.stdout.flush()
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
