"""A real vLLM on two ranks (tensor parallel) that scales to zero and comes back from a snapshot.

    scripts/setup_vllm.sh && scripts/setup_engines.sh two-ranks      # vLLM, and a model for two ranks
    glowplug up && glowplug deploy examples/vllm_tensor_parallel.py
    curl localhost:8080/tensor-parallel/vllm/v1/completions -H 'content-type: application/json' \\
        -d '{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'

As it is, its ranks add up through shared memory and keep connections of Gloo over loopback; both are captured
as they are. GLOWPLUG_VLLM_RANKS=1 adds the plugin in servers/vllm_ranks: all ranks let their communicators go
before the capture and make them anew in every copy (docs/nccl.md), and what they add up goes over Gloo.
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_VLLM_VENV", f"{CACHE}/engines/vllm-0.32.0")
MODEL = os.environ.get("GLOWPLUG_MODEL_DIR", f"{CACHE}/models/smollm2-135m-two-ranks")
PLUGIN = {"PYTHONPATH": "/servers/vllm_ranks"} if os.environ.get("GLOWPLUG_VLLM_RANKS") == "1" else {}

app = gp.App("tensor-parallel")


@app.server(
    image=gp.Image.host_python(venv=VENV).add_local_dir("servers", "/servers"),
    cpus=2,
    memory="10GiB",
    volumes={"/models/smollm2": gp.Volume(MODEL, read_only=True)},
    # Without `nobind` vLLM wants a NUMA node for every rank.
    env={
        "HF_HUB_OFFLINE": "1",
        "HOME": "/tmp/home",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **PLUGIN,
    },
    scaledown_window_s=10,
    parked_window_s=0,  # straight to zero: it shows what a snapshot does
)
def vllm():
    command = "vllm serve /models/smollm2 --served-model-name smollm2 --host 0.0.0.0 --port 8000"
    limits = "--enforce-eager --max-model-len 512 --max-num-seqs 4 --kv-cache-memory-bytes 64M"
    return [*command.split(), *limits.split(), "--tensor-parallel-size", "2"]
