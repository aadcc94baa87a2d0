"""A Node.js server. Its program is in examples/servers; Node.js is the node's own, from /usr.

scripts/setup_engines.sh node
glowplug up && glowplug deploy examples/node_server.py
curl 'localhost:8080/node/primes/?below=1000000'               # {"below":1000000,"count":78498}
"""

import glowplug as gp

app = gp.App("node")


@app.server(
    image=gp.Image.host_python().add_local_dir("servers", "/servers").workdir("/servers"),
    memory="512MiB",
    snapshot=gp.Snapshot(canary=["GET /?below=1000"]),
    scaledown_window_s=10,
)
def primes():
    return ["node", "server.mjs"]
