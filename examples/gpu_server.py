"""A server whose data lies in GPU memory, restored with it: nothing is made or copied there a second time.

glowplug up && glowplug deploy examples/gpu_server.py           # on a node with an H100, or GLOWPLUG_GPU=L4
curl 'localhost:8080/cubes/table/?of=123'                       # 1860867
glowplug stop cubes && curl 'localhost:8080/cubes/table/?of=123'
glowplug coldstarts cubes                                       # gpu_snapshot: device_init is one copy

GLOWPLUG_GPU_VENV names a virtual environment with cuda-bindings on the node. What a node needs, what is
captured, and what cannot be: docs/gpu.md.
"""

import os

import glowplug as gp

PROGRAM = """
import array, http.server, struct, urllib.parse
from cuda.bindings import driver

COUNT = 500_000

def do(answer):
    result, *values = answer
    if result != driver.CUresult.CUDA_SUCCESS:
        raise SystemExit(f"the driver says {result.name}")
    return values[0] if values else None

do(driver.cuInit(0))
context = do(driver.cuDevicePrimaryCtxRetain(do(driver.cuDeviceGet(0))))
do(driver.cuCtxSetCurrent(context))
table = int(do(driver.cuMemAlloc(8 * COUNT)))
do(driver.cuMemcpyHtoD(table, array.array("q", (number**3 for number in range(COUNT))).tobytes(), 8 * COUNT))

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

app = gp.App("cubes")


@app.server(
    image=gp.Image.host_python(venv=os.environ.get("GLOWPLUG_GPU_VENV", "/srv/venvs/cuda")),
    gpu=os.environ.get("GLOWPLUG_GPU", "H100"),
    trusted=True,  # GPU memory is captured in runc, not in gVisor
    memory="512MiB",
    snapshot=gp.Snapshot(gpu=True, canary=["GET /?of=77"]),
    scaledown_window_s=60,
)
def table():
    return ["python3", "-c", PROGRAM]
