"""A plain command that does something around its snapshot: a pool of connections, and randomness of its own.

glowplug up && glowplug deploy examples/hooks_server.py
curl 'localhost:8080/dice/cup/?throws=3'                     # 3 throws, of a copy's own; "connections": 4

The server keeps four connections to a small database beside it. It closes them before its memory is captured
and opens them again in every copy, which also throws dice of its own. No line of the deployment says so: the
node finds what was registered with `glowplug.hooks`. Outside Glowplug the same program just runs. See
docs/trust.md.
"""

import glowplug as gp

PROGRAM = """
import http.server, json, multiprocessing, queue, random, threading, urllib.parse
from multiprocessing.connection import Client, Listener
from glowplug import hooks

DATABASE = "/tmp/database.sock"
NAMES = ["", "one", "two", "three", "four", "five", "six"]

def answer(connection):
    try:
        while True:
            connection.send(NAMES[connection.recv()])
    except EOFError:
        connection.close()

def database(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()

class Pool:
    def __init__(self):
        self.idle = queue.Queue()

    def open(self):
        for _ in range(4):
            self.idle.put(Client(DATABASE))

    def close(self):
        for _ in range(self.idle.qsize()):
            self.idle.get().close()

    def ask(self, question):
        connection = self.idle.get()
        try:
            connection.send(question)
            return connection.recv()
        finally:
            self.idle.put(connection)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        throws = [random.randint(1, 6) for _ in range(int(query.get("throws", ["0"])[0]))]
        words = [pool.ask(throw) for throw in throws]
        body = json.dumps({"throws": words, "connections": pool.idle.qsize()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

listener = Listener(DATABASE, backlog=16)
multiprocessing.get_context("fork").Process(target=database, args=(listener,), daemon=True).start()
pool = Pool()
pool.open()

hooks.before_snapshot(pool.close)
hooks.after_restore(hooks.reseed)
hooks.after_restore(pool.open)

http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("dice")


@app.server(memory="256MiB", snapshot=gp.Snapshot(warmup=["GET /?throws=2"]), scaledown_window_s=10)
def cup():
    return ["python3", "-c", PROGRAM]
