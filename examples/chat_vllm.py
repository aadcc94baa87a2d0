"""A real vLLM server with real weights that scales to zero and comes back from a snapshot.

    glowplug up && glowplug deploy examples/chat_vllm.py
    curl localhost:8080/chat/vllm/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}'

GLOWPLUG_VLLM_VENV and GLOWPLUG_MODEL_DIR say where vLLM and the model lie (`make demo` installs both).
GLOWPLUG_VLLM_COMPILE=1 starts it with torch.compile: minutes for the first start, none for its copies.
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_VLLM_VENV", f"{CACHE}/engines/vllm-0.32.0")
MODEL = os.environ.get("GLOWPLUG_MODEL_DIR", f"{CACHE}/models/smollm2-135m-instruct")
COMPILE = os.environ.get("GLOWPLUG_VLLM_COMPILE") == "1"
QUESTION = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 1,
}

app = gp.App("chat")


@app.server(
    image=gp.Image.host_python(venv=VENV),
    cpus=2,
    memory="6GiB",
    volumes={"/models/smollm2": gp.Volume(MODEL, read_only=True)},
    # Readiness, port and vLLM's own variables come from its recipe: docs/engines.md.
    env={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "HOME": "/tmp/home"},
    snapshot=gp.Snapshot(
        warmup=[gp.Request("POST", "/v1/chat/completions", json={**QUESTION, "max_tokens": 16})],
        canary=[gp.Request("POST", "/v1/chat/completions", json=QUESTION)],
    ),
    max_replicas=int(os.environ.get("GLOWPLUG_DEMO_REPLICAS", "1")),
    target_concurrency=4,  # as --max-num-seqs below
    scaledown_window_s=float(os.environ.get("GLOWPLUG_DEMO_WINDOW_S", "3")),
    parked_window_s=0,  # straight to zero: it shows what a snapshot does
)
def vllm():
    command = "vllm serve /models/smollm2 --served-model-name smollm2 --host 0.0.0.0 --port 8000"
    limits = "--max-model-len 512 --max-num-seqs 4 --kv-cache-memory-bytes 64M"
    eager = [] if COMPILE else ["--enforce-eager"]
    return [*command.split(), *limits.split(), *eager]
