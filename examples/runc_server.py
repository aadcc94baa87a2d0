"""A server that you trust, on the host's own kernel: runc with CRIU instead of gVisor.

glowplug up && glowplug deploy examples/runc_server.py
curl 'localhost:8080/primes/table/?below=1000000'               # 78498

Its worker processes share a table that takes a while to make. It is made once: every later start is a copy of
the processes and their shared memory. docs/runtimes.md says when to choose which runtime.
"""

import glowplug as gp

PROGRAM = """
import http.server, multiprocessing, urllib.parse
from multiprocessing import shared_memory

SIZE = 3_000_000
table = shared_memory.SharedMemory(create=True, size=SIZE)  # a file in /dev/shm
table.buf[:SIZE] = b"\\1" * SIZE
for number in range(2, int(SIZE ** 0.5) + 1):
    if table.buf[number]:
        table.buf[number * number : SIZE : number] = bytes(len(range(number * number, SIZE, number)))

def primes(bounds):
    return sum(table.buf[max(2, bounds[0]) : bounds[1]])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        below = min(SIZE, int(query.get("below", ["100"])[0]))
        halves = [(0, below // 2), (below // 2, below)]
        body = b"%d\\n" % sum(workers.map(primes, halves))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

workers = multiprocessing.get_context("fork").Pool(2)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("primes")


@app.server(
    runtime="runc",  # trusted=True says the same of nodes that have it, and gVisor where there is none
    memory="256MiB",
    snapshot=gp.Snapshot(canary=["GET /?below=1000"]),
    scaledown_window_s=10,
)
def table():
    return ["python3", "-c", PROGRAM]
