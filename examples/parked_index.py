"""A server that is parked between requests: frozen with its index in memory, awake in a tenth of a second.

glowplug up && glowplug deploy examples/parked_index.py
curl 'localhost:8080/index/lookup/?word=w4711'                  # 4711
sleep 8; glowplug ps                                            # parked
curl localhost:8080/index/lookup/started                        # the same process as before

Building the index takes a while, and no snapshot of it is needed to have it again soon: idle for
scaledown_window_s the replica is parked, and only after parked_window_s more it is stopped. Its memory may
go to swap meanwhile (parked_memory="swap"), so that many such servers fit on one machine. docs/node.md tells
what a parked replica costs.
"""

import os

import glowplug as gp

PROGRAM = """
import http.server, os, time, urllib.parse

STARTED = time.time_ns()
index = {"w%d" % number: number for number in range(100_000)}
ballast = bytearray()
for _ in range(int(os.environ["BALLAST_MIB"])):
    ballast += os.urandom(1 << 20)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/started":
            text = STARTED
        elif url.path == "/everything":  # reads a byte of every page
            text = sum(ballast[::4096])
        else:
            text = index[urllib.parse.parse_qs(url.query).get("word", ["w0"])[0]]
        body = b"%d\\n" % text
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("index")


@app.server(
    memory="512MiB",
    env={"BALLAST_MIB": os.environ.get("GLOWPLUG_BALLAST_MIB", "16")},
    scaledown_window_s=5,
    parked_window_s=600,
    parked_memory="swap",  # "keep" (the default): only when memory is short
)
def lookup():
    return ["python3", "-c", PROGRAM]
