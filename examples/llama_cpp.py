"""llama.cpp's server with SmolLM2-135M in four bits.

    scripts/setup_engines.sh small-models
    glowplug up && glowplug deploy examples/llama_cpp.py
    curl localhost:8080/llama/server/v1/completions -H 'content-type: application/json' \\
        -d '{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'

A model this small loads faster than its snapshot: docs/engines.md.
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_ENGINE_VENV", f"{CACHE}/engines/small-models")
MODEL = f"{CACHE}/models/smollm2-135m-gguf"

app = gp.App("llama")


@app.server(
    image=gp.Image.host_python(venv=VENV).add_local_dir("servers", "/servers").workdir("/servers"),
    recipe="llama.cpp",  # its command is Python, so it is not recognised
    cpus=2,
    memory="1GiB",
    volumes={"/models": gp.Volume(MODEL, read_only=True)},
    scaledown_window_s=10,
)
def server():
    return ["python3", "llama_server.py", "/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
