"""Weights, fast: safetensors read in parallel, from files and lazily mounted images, to where they are used.

    from glowplug import weights

    tensors = weights.load("/models/qwen", device="cuda")   # name to tensor
    weights.load_into(module, "/models/qwen")                # into parameters that are there
    for name, tensor in weights.iterate("/models/qwen"): ...  # one by one, in bounded memory

Blocks of several files are read at the same time; for a GPU each thread reads into one pinned buffer while
the device copies from another. With ``Snapshot(weights="stream")`` what ``load_into`` filled is in no
snapshot, and read again, in the same way, by every copy (docs/weights.md). And there is
``vllm serve --load-format glowplug``.

It can be imported in every container that Glowplug starts, needs PyTorch when something is loaded, and
nothing else.
"""

from __future__ import annotations

from glowplug.weights.files import find_weights
from glowplug.weights.header import Entry, Header, parse_header
from glowplug.weights.modules import Filled, load_into
from glowplug.weights.reading import Reading
from glowplug.weights.tensors import iterate, load

__all__ = [
    "Entry", "Filled", "Header", "Reading", "find_weights", "iterate", "load", "load_into", "parse_header",
]  # fmt: skip
