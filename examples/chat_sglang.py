"""SGLang on a CPU, with real weights. Its GPU kernels are stubs (scripts/sglang_stubs.py): PyTorch computes.

    scripts/setup_engines.sh sglang && scripts/setup_vllm.sh            # the engine and the model
    glowplug up && glowplug deploy examples/chat_sglang.py
    curl localhost:8080/chat-sglang/sglang/v1/completions -H 'content-type: application/json' \\
        -d '{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_SGLANG_VENV", f"{CACHE}/engines/sglang-0.5.23")
MODEL = os.environ.get("GLOWPLUG_MODEL_DIR", f"{CACHE}/models/smollm2-135m-instruct")

app = gp.App("chat-sglang")


@app.server(
    image=gp.Image.host_python(venv=VENV),
    volumes={"/models/smollm2": gp.Volume(MODEL, read_only=True)},
    env={"HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1"},
    scaledown_window_s=10,
)
def sglang():
    command = "python3 -m sglang.launch_server --model-path /models/smollm2 --host 0.0.0.0 --port 30000"
    on_cpu = "--device cpu --attention-backend torch_native --sampling-backend pytorch --disable-radix-cache"
    limits = "--max-total-tokens 2048 --max-running-requests 4 --context-length 512"
    return [*command.split(), *on_cpu.split(), *limits.split()]
