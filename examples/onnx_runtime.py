"""An ONNX model served by ONNX Runtime and FastAPI.

scripts/setup_engines.sh small-models
glowplug up && glowplug deploy examples/onnx_runtime.py
curl 'localhost:8080/onnx/model/predict?x=1'
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_ENGINE_VENV", f"{CACHE}/engines/small-models")

app = gp.App("onnx")


@app.server(
    image=gp.Image.host_python(venv=VENV).add_local_dir("servers", "/servers").workdir("/servers"),
    memory="1GiB",
    snapshot=gp.Snapshot(warmup=["GET /predict?x=1"], canary=["GET /predict?x=2"]),
    scaledown_window_s=10,
)
def model():
    return ["fastapi", "run", "onnx_server.py"]
