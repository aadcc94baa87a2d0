"""A light server for a cluster on Ray, which answers after as long as it is asked for.

on the first machine, which the others reach at 10.0.0.1
    glowplug cluster up --engine ray --advertise 10.0.0.1
    glowplug cluster token
on each other machine
    glowplug cluster join 10.0.0.1:8080 --engine ray --token TOKEN
then
    glowplug deploy examples/ray/app.py
    curl 'localhost:8080/light/web/?seconds=0.5'            # on any of them: each has a router
    curl localhost:8080/light/web/copy                      # which copy has answered

A caller for whom no copy has room waits for another one, which starts wherever there is room for it. The
image is the machines' own Python, which must be the same on all. `make demo-cluster` does all of this on one
machine.
"""

import os

import glowplug as gp

PROGRAM = """
import http.server, json, time, urllib.parse

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        seconds = urllib.parse.parse_qs(url.query).get("seconds", ["0"])[0]
        time.sleep(min(float(seconds), 60.0))
        answer = {"sum": sum(range(1000))}
        if url.path == "/copy":
            with open("/run/glowplug/env.json") as file:
                answer["replica"] = json.load(file)["replica_id"]
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("light")


@app.server(
    cpus=0.5,
    memory="128MiB",
    max_replicas=int(os.environ.get("GLOWPLUG_DEMO_REPLICAS", "6")),
    target_concurrency=1,
    scaledown_window_s=float(os.environ.get("GLOWPLUG_DEMO_WINDOW_S", "30")),
    parked_window_s=0,
)
def web():
    return ["python3", "-c", PROGRAM]
