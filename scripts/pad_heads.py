"""Add attention heads that do nothing to a Llama model, so that two ranks can share it.

    python pad_heads.py MODEL DESTINATION

SmolLM2-135M has 9 query heads and 3 key-value heads, which tensor parallelism cannot divide by two. The heads
that are added have weights of zero, and nothing of what they say reaches the output: the model computes what
it did. Needs torch and safetensors; as ``convert_smollm2.py``, it asks the written model a question first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from convert_smollm2 import EXPECTED, QUESTION, answer
from safetensors.torch import load_file, save_file

RANKS = 2
WEIGHTS = "model.safetensors"


def pad(source: Path, destination: Path) -> None:
    """Write the model with as many key-value heads as RANKS divides."""
    config = json.loads((source / "config.json").read_text())
    heads, kv_heads, width = (config[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    wanted_kv = -(-kv_heads // RANKS) * RANKS
    wanted = heads // kv_heads * wanted_kv
    rows = {"q_proj": wanted * width, "k_proj": wanted_kv * width, "v_proj": wanted_kv * width}
    shutil.copytree(source, destination, ignore=lambda folder, names: [WEIGHTS, ".glowplug-complete"])
    tensors = {}
    for name, tensor in load_file(source / WEIGHTS).items():
        part = name.split(".")[-2]
        if part in rows:
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, rows[part] - tensor.shape[0]))
        elif part == "o_proj":
            tensor = torch.nn.functional.pad(tensor, (0, wanted * width - tensor.shape[1]))
        tensors[name] = tensor
    save_file(tensors, destination / WEIGHTS, metadata={"format": "pt"})
    config |= {"num_attention_heads": wanted, "num_key_value_heads": wanted_kv}
    (destination / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    """Pad, then prove the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    pad(arguments.model, arguments.destination)
    said = answer(arguments.destination)
    if EXPECTED not in said:
        sys.exit(f"The padded model answers {QUESTION!r} with {said!r}, which does not name {EXPECTED}.")
    print(f"    {QUESTION} -> {said}")


if __name__ == "__main__":
    main()
