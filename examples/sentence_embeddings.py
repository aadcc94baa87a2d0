"""Sentence embeddings: all-MiniLM-L6-v2 with sentence-transformers.

    scripts/setup_engines.sh small-models
    glowplug up && glowplug deploy examples/sentence_embeddings.py
    curl localhost:8080/sentences/embedder/similarity -H 'content-type: application/json' \\
        -d '["A cat sits.", "A kitten is sitting.", "Stocks fell."]'
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_ENGINE_VENV", f"{CACHE}/engines/small-models")
MODEL = f"{CACHE}/models/all-minilm-l6-v2"
SENTENCES = gp.Request("POST", "/similarity", json=["A cat sits.", "Stocks fell."])

app = gp.App("sentences")


@app.server(
    image=gp.Image.host_python(venv=VENV).add_local_dir("servers", "/servers").workdir("/servers"),
    ready="/health",
    cpus=2,
    memory="3GiB",
    volumes={"/models/minilm": gp.Volume(MODEL, read_only=True)},
    env={"MODEL": "/models/minilm", "HF_HUB_OFFLINE": "1"},
    snapshot=gp.Snapshot(warmup=[SENTENCES], canary=[SENTENCES]),
    scaledown_window_s=10,
)
def embedder():
    return ["uvicorn", "embedding_server:app"]
