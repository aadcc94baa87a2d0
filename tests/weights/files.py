"""Safetensors files made by hand, right ones and wrong ones, without PyTorch and without the library."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glowplug.weights.header import DTYPE_BITS

Tensors = Mapping[str, tuple[str, Sequence[int], bytes]]


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def tensor(dtype: str, shape: Sequence[int], seed: int = 0) -> tuple[str, Sequence[int], bytes]:
    """Random bits. (As floats some are NaN: compare bytes.)"""
    count = 1
    for size in shape:
        count *= size
    return dtype, shape, noise(count * DTYPE_BITS[dtype] // 8, seed)


def described(tensors: Tensors) -> dict[str, Any]:
    """The header's object, offsets in the order of the mapping."""
    at, entries = 0, {}
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(content)]}
        at += len(content)
    return entries


def packed(header: object, data: bytes, *, length: int | None = None) -> bytes:
    """A whole file. ``header``: an object, or the header's own bytes; ``length`` lies about it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write(path: Path, tensors: Tensors) -> Path:
    path.write_bytes(packed(described(tensors), b"".join(content for _, _, content in tensors.values())))
    return path


def write_shards(folder: Path, shards: Sequence[Tensors], *, with_index: bool = True) -> Path:
    """``model-00001-of-0000N.safetensors`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    if with_index:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
