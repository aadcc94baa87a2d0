"""Weights into tensors that are there already: a module's parameters and buffers, or any named tensors.

The bytes go straight into the tensors' own memory. Nothing is written before every tensor of the target was
found in the files, with its shape and dtype.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glowplug.types.errors import InvalidInput
from glowplug.weights import streaming
from glowplug.weights.files import Source, find_weights
from glowplug.weights.header import Entry
from glowplug.weights.reading import Reading
from glowplug.weights.tensors import read_tensors, torch_dtype

_SHOWN_NAMES = 5


@dataclass(frozen=True)
class Filled:
    """What :func:`load_into` did. ``unused``: names in the files that the target has no tensor for."""

    tensors: int
    size_bytes: int
    seconds: float
    unused: tuple[str, ...]

    def __str__(self) -> str:
        rate = self.size_bytes / 1e9 / self.seconds if self.seconds else 0.0
        return f"{self.size_bytes / 1e9:.2f} GB in {self.seconds:.2f} s ({rate:.2f} GB/s)"


def load_into(
    target: Any,
    source: Source | Sequence[Source],
    *,
    rename: Callable[[str], str | None] | None = None,
    strict: bool = True,
    reading: Reading | None = None,
) -> Filled:
    """Fill a module's parameters and buffers (its ``state_dict``), or a mapping of tensors, from ``source``.

    ``source`` as in :func:`glowplug.weights.load`. ``rename`` gives the target's name for one in the files,
    or None to leave it out. Tensors that share memory (tied weights) need one name in the files. A
    ``strict`` load raises InvalidInput for tensors that the files lack; those that the target lacks are told.

    Where the deployment says ``Snapshot(weights="stream")``, what was filled is left out of snapshots: it is
    let go before memory is captured, and read again in every copy (:mod:`glowplug.weights.streaming`). Call
    it last then, when the weights are where they stay and will not be changed any more.
    """
    began = time.monotonic()
    weights = find_weights(source)
    tensors = _named_tensors(target)
    renamed = rename or _same
    chosen: list[tuple[int, Entry]] = []
    targets: list[Any] = []
    filled: dict[tuple[object, ...], str] = {}
    unused: list[str] = []
    for number, entry in weights.chosen():
        name = renamed(entry.name)
        tensor = None if name is None else tensors.get(name)
        if tensor is None:
            unused.append(entry.name)
            continue
        _check_fits(tensor, entry)
        if _memory_of(tensor) in filled:  # tied, and in the files under both names
            continue
        filled[_memory_of(tensor)] = entry.name
        chosen.append((number, entry))
        targets.append(tensor)
    missing = [name for name, tensor in tensors.items() if _memory_of(tensor) not in filled]
    if strict and missing:
        raise InvalidInput(
            f"The weights lack {len(missing)} of the tensors to fill: {_listed(missing)}.",
            remedy="Give rename= if they are called otherwise there, or strict=False to leave them alone.",
            missing=missing[:100],
        )
    _check_one_device(targets)
    for _ in read_tensors(weights, chosen, targets.__getitem__, reading):
        pass
    if streaming.is_wanted():
        streaming.stream(weights, chosen, targets, reading)
    size_bytes = sum(entry.size_bytes for _, entry in chosen)
    done = Filled(len(chosen), size_bytes, time.monotonic() - began, tuple(unused))
    print(f"glowplug.weights: {done}", file=sys.stderr, flush=True)
    return done


def _named_tensors(target: Any) -> dict[str, Any]:
    """By name, also under each name of one that has several; what is in a state_dict and no tensor is not."""
    import torch

    if isinstance(target, torch.nn.Module):
        named = target.state_dict(keep_vars=True)
    elif isinstance(target, Mapping):
        named = dict(target)
    else:
        raise InvalidInput(
            f"Weights cannot be loaded into a {type(target).__name__}.",
            remedy="Give a torch.nn.Module, or a mapping from names to tensors.",
        )
    return {name: tensor for name, tensor in named.items() if isinstance(tensor, torch.Tensor)}


def _check_fits(tensor: Any, entry: Entry) -> None:
    if tensor.device.type == "meta":
        raise InvalidInput(
            f"The tensor for {entry.name!r} has no memory: it is on the meta device.",
            remedy='Call module.to_empty(device="cpu"), or "cuda", first.',
        )
    if tuple(tensor.shape) != entry.shape or tensor.dtype != torch_dtype(entry):
        raise InvalidInput(
            f"{entry.name!r} is {entry.dtype} {list(entry.shape)} in the files, and {tensor.dtype} "
            f"{list(tensor.shape)} in the target.",
            remedy="Make the target as the files are (module.to(dtype)), and change it afterwards.",
        )
    if not tensor.is_contiguous():
        raise InvalidInput(
            f"The tensor for {entry.name!r} is not contiguous.", remedy="Make it so: .contiguous()."
        )


def _check_one_device(targets: Sequence[Any]) -> None:
    devices = {str(tensor.device) for tensor in targets}
    if len(devices) > 1 or not all(device.startswith(("cpu", "cuda")) for device in devices):
        raise InvalidInput(
            f"The tensors to fill are on {', '.join(sorted(devices))}.",
            remedy="Put them on the CPU or on one CUDA device; call load_into once for each device's.",
        )


def _memory_of(tensor: Any) -> tuple[object, ...]:
    """Equal for tensors that are the same memory. Empty ones have none, and are told apart by themselves."""
    if not tensor.numel():
        return ("empty", id(tensor))
    return (str(tensor.device), tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _same(name: str) -> str:
    return name


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(name[:80] for name in names[:_SHOWN_NAMES]) + more
