"""A plain PyTorch server that holds GLOWPLUG_TORCH_MB of weights and answers with their checksum.

    glowplug up && GLOWPLUG_TORCH_MB=1000 glowplug deploy examples/torch_server.py
    curl localhost:8080/torch/weights/

The cost of a restore grows with memory, and this shows how: benchmarks/ uses it. GLOWPLUG_TORCH_VENV names
an environment that has torch (default: that of vLLM).
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VLLM_VENV = os.environ.get("GLOWPLUG_VLLM_VENV", f"{CACHE}/engines/vllm-0.32.0")
VENV = os.environ.get("GLOWPLUG_TORCH_VENV", VLLM_VENV)
MEGABYTES = int(os.environ.get("GLOWPLUG_TORCH_MB", "1000"))
PROGRAM = """
import http.server, sys, torch

torch.manual_seed(0)
weights = torch.rand(int(sys.argv[1]) * 250_000)  # 4 bytes each

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        sample = weights[::100_000] if self.path == "/sample" else weights
        body = b"%.3f\\n" % sample.sum().item()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("torch")


@app.server(
    image=gp.Image.host_python(venv=VENV),
    ready="/sample",
    cpus=2,
    memory=(MEGABYTES * 2 + 2000) * 1_000_000,
    snapshot=gp.Snapshot(warmup=["GET /"], canary=["GET /sample"]),
    scaledown_window_s=float(os.environ.get("GLOWPLUG_DEMO_WINDOW_S", "10")),
    parked_window_s=0,  # straight to zero: it shows what a snapshot does
)
def weights():
    return ["python3", "-c", PROGRAM, str(MEGABYTES)]
