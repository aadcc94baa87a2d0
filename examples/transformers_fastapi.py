"""A model of the transformers library behind FastAPI and Uvicorn.

    scripts/setup_engines.sh small-models && scripts/setup_vllm.sh      # the engine and the model
    glowplug up && glowplug deploy examples/transformers_fastapi.py
    curl localhost:8080/transformers/generator/generate -H 'content-type: application/json' \\
        -d '{"prompt": "The capital of France is"}'
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_ENGINE_VENV", f"{CACHE}/engines/small-models")
MODEL = os.environ.get("GLOWPLUG_MODEL_DIR", f"{CACHE}/models/smollm2-135m-instruct")
PROMPT = gp.Request("POST", "/generate", json={"prompt": "The capital of France is"})

app = gp.App("transformers")


@app.server(
    image=gp.Image.host_python(venv=VENV).add_local_dir("servers", "/servers").workdir("/servers"),
    ready="/health",
    cpus=2,
    memory="3GiB",
    volumes={"/models/smollm2": gp.Volume(MODEL, read_only=True)},
    env={"MODEL": "/models/smollm2", "HF_HUB_OFFLINE": "1"},
    snapshot=gp.Snapshot(warmup=[PROMPT], canary=[PROMPT]),
    scaledown_window_s=10,
)
def generator():
    return ["uvicorn", "transformers_server:app"]
