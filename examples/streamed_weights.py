"""A class whose weights are in no snapshot: every copy reads them again, in parallel, before it answers.

    scripts/setup_vllm.sh               # an environment with PyTorch and transformers, and the model
    glowplug up && glowplug deploy examples/streamed_weights.py
    curl localhost:8080/streamed/generator/generate -d '{"prompt": "The capital of France is"}'

The snapshot holds the imported libraries and the model without its parameters, which lie in a volume that all
copies and all nodes share. See docs/weights.md.
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VENV = os.environ.get("GLOWPLUG_VLLM_VENV", f"{CACHE}/engines/vllm-0.32.0")
MODEL = os.environ.get("GLOWPLUG_MODEL_DIR", f"{CACHE}/models/smollm2-135m-instruct")
PROMPT = gp.Request("POST", "/generate", json={"prompt": "The capital of France is"})

app = gp.App("streamed")


@app.cls(
    image=gp.Image.host_python(venv=VENV),
    cpus=2,
    memory="3GiB",
    volumes={"/models/smollm2": gp.Volume(MODEL, read_only=True)},
    env={"HF_HUB_OFFLINE": "1"},
    snapshot=gp.Snapshot(weights="stream", warmup=[PROMPT], canary=[PROMPT]),
    scaledown_window_s=10,
)
class Generator:
    @gp.enter(snap=True)
    def load(self):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from glowplug import weights

        folder = "/models/smollm2"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
        weights.load_into(self.model, folder)

    @gp.method()
    def generate(self, prompt: str, max_tokens: int = 8) -> dict[str, str]:
        import torch

        tokens = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**tokens, max_new_tokens=max_tokens, do_sample=False)
        return {"text": self.tokenizer.decode(output[0], skip_special_tokens=True)}
