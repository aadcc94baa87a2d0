"""A transformer of any size, in nothing but PyTorch, and files of random weights for it.

Decoder blocks as published models have them (norm, causal attention, MLP), in bfloat16, as many and as wide
as it takes to have the wanted number of bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

TOKENS = 64
_BYTES_PER_PARAMETER = 2
_WIDTHS = ((32e9, 6144), (12e9, 4096), (3e9, 2560), (0.5e9, 1536), (0.0, 256))
_HEAD_WIDTH = 64
_STRIP = 64 << 20


@dataclass(frozen=True)
class Shape:
    """How wide and deep a model is, and how many tokens it knows."""

    width: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, size_bytes: float) -> Shape:
        """One whose weights have about ``size_bytes``: a layer more or less."""
        width = next(width for least, width in _WIDTHS if size_bytes >= least)
        vocabulary = 32_000 if size_bytes >= 0.5e9 else 1024
        left = size_bytes / _BYTES_PER_PARAMETER - vocabulary * width
        return cls(width, max(2, round(left / (12 * width * width))), vocabulary)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // _HEAD_WIDTH
        self.before = nn.RMSNorm(width)
        self.joined = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.between = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        joined = self.joined(self.before(x)).view(batch, tokens, 3, self.heads, _HEAD_WIDTH)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.between(x))))


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the last position; the embedding is the head, too."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x[:, -1]), self.embed.weight)


def empty_model(shape: Shape, device: str) -> Model:
    """Its parameters have memory and no values."""
    with torch.device("meta"):
        model = Model(shape).to(torch.bfloat16)
    return model.to_empty(device=device).eval().requires_grad_(False)


def tokens_of(seed: int, shape: Shape) -> torch.Tensor:
    """A prompt that is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape.vocabulary, (1, TOKENS), generator=generator)


def write_weights(path: Path, shape: Shape, device: str) -> int:
    """A safetensors file of random weights; its bytes. Noise is made on ``device``: a CPU needs minutes."""
    with torch.device("meta"):
        parameters = {name: tuple(p.shape) for name, p in Model(shape).named_parameters()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dimensions in parameters.items():
        size_bytes = _BYTES_PER_PARAMETER * torch.Size(dimensions).numel()
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [at, at + size_bytes]}
        at += size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator(device).manual_seed(0)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dimensions in parameters.values():
            left = torch.Size(dimensions).numel()
            while left:
                count = min(left, _STRIP)
                strip = torch.empty(count, dtype=torch.bfloat16, device=device)
                if len(dimensions) == 1:  # a norm's
                    strip.fill_(1.0)
                else:
                    strip.normal_(0.0, 0.02, generator=generator)
                file.write(strip.cpu().view(torch.uint8).numpy().data)
                left -= count
    fresh.replace(path)
    return path.stat().st_size


def main() -> None:
    """Write a file of weights; how many bytes, on stdout."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--gigabytes", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(write_weights(arguments.file, Shape.of(arguments.gigabytes * 1e9), arguments.device))


if __name__ == "__main__":
    main()
