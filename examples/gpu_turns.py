"""Two servers that take turns on one GPU: whoever is not asked is parked, its data in host memory.

glowplug up && glowplug deploy examples/gpu_turns.py            # on a node with one H100, or GLOWPLUG_GPU=L4
curl 'localhost:8080/powers/squares/?of=12'                     # 144
curl 'localhost:8080/powers/cubes/?of=12'                       # 1728: squares was parked for it
glowplug ps powers                                              # squares: 0 B, 4.00 MB on host
curl 'localhost:8080/powers/squares/?of=12'                     # woken by one copy; cubes is parked

A GPU has one server at a time that is awake. The one that makes way is idle, and worth least: asked for
least, or soonest back. GLOWPLUG_GPU_VENV names a virtual environment with cuda-bindings on the node. What can
be parked, and what it takes: docs/gpu.md.
"""

import os

import glowplug as gp

PROGRAM = """
import array, http.server, struct, sys, urllib.parse
from cuda.bindings import driver

POWER, COUNT = int(sys.argv[1]), 500_000

def do(answer):
    result, *values = answer
    if result != driver.CUresult.CUDA_SUCCESS:
        raise SystemExit(f"the driver says {result.name}")
    return values[0] if values else None

do(driver.cuInit(0))
context = do(driver.cuDevicePrimaryCtxRetain(do(driver.cuDeviceGet(0))))
do(driver.cuCtxSetCurrent(context))
table = int(do(driver.cuMemAlloc(8 * COUNT)))
powers = array.array("q", (number**POWER for number in range(COUNT)))
do(driver.cuMemcpyHtoD(table, powers.tobytes(), 8 * COUNT))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        number = int(query.get("of", ["2"])[0]) % COUNT
        found = bytearray(8)
        do(driver.cuCtxSetCurrent(context))  # of this thread
        do(driver.cuMemcpyDtoH(found, table + 8 * number, 8))
        body = b"%d\\n" % struct.unpack("q", found)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("powers")
on_one_gpu = {
    "image": gp.Image.host_python(venv=os.environ.get("GLOWPLUG_GPU_VENV", "/srv/venvs/cuda")),
    "gpu": os.environ.get("GLOWPLUG_GPU", "H100"),
    "trusted": True,  # device memory is moved in runc, not in gVisor
    "memory": "512MiB",  # with room for what lies on the device
    "snapshot": gp.Snapshot(gpu=True),
    "scaledown_window_s": 60,
    "parked_window_s": 3600,
}


@app.server(**on_one_gpu)
def squares():
    return ["python3", "-c", PROGRAM, "2"]


@app.server(**on_one_gpu)
def cubes():
    return ["python3", "-c", PROGRAM, "3"]
