"""What tests have done in a process that has PyTorch and the safetensors library: an engine's, as installed.

``python torch_side.py`` reads one JSON object a line, ``{"do": NAME, "with": {...}}``, calls the function of
that name below, and answers with ``{"value": ...}`` or ``{"error": {...}}``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glowplug import weights
from glowplug.types.errors import GlowplugError
from glowplug.weights import streaming
from glowplug.weights.files import find_weights
from glowplug.weights.tensors import TORCH_DTYPES

DTYPES = [dtype for name in TORCH_DTYPES.values() if (dtype := getattr(torch, name, None)) is not None]
CHECKS: dict[str, Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    CHECKS[function.__name__] = function
    return function


def noise(shape: list[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bits, but for bool, which has two values."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    count = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).tolist())


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape)
        and bits(ours[name]) == bits(theirs[name])
        for name in theirs
    )


@check
def every_dtype(folder: str) -> dict[str, Any]:
    """A file with every dtype and odd shapes: is ours the library's, bit for bit?"""
    shapes = [[], [1], [0], [3, 0, 2], [17, 3], [2, 3, 5, 7]]
    made = {
        f"{dtype}-{number}": noise(shape, dtype, number)
        for dtype in DTYPES
        for number, shape in enumerate(shapes)
    }
    file = Path(folder) / "every.safetensors"
    save_file(made, file)
    readings = [
        weights.Reading(threads=threads, block_bytes=size) for threads in (1, 4) for size in (64, 8 << 20)
    ]
    theirs = load_file(file)
    return {
        "tensors": len(made),
        "same": [same(weights.load(file, reading=reading), theirs) for reading in readings],
        "in order": list(weights.load(file)) == [entry.name for _, entry in find_weights(file).chosen()],
    }


@check
def model_is_the_same(path: str) -> bool:
    """A whole model on this machine."""
    ours = weights.load(path)
    theirs: dict[str, torch.Tensor] = {}
    for file in sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]:
        theirs |= load_file(file)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)) for name in theirs
    )


@check
def own_memory(folder: str) -> dict[str, Any]:
    file = Path(folder) / "two.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.zeros(1000)}, file)
    loaded = weights.load(file)
    storages = {tensor.untyped_storage().data_ptr() for tensor in loaded.values()}
    return {"storages": len(storages), "bytes": [t.untyped_storage().nbytes() for t in loaded.values()]}


@check
def refuses(folder: str) -> list[Any]:
    """Each call must raise; what it raised."""
    file = Path(folder) / "one.safetensors"
    save_file({"a": torch.ones(10), "b": torch.ones(2, 2)}, file)
    linear = {"a": torch.zeros(10), "b": torch.zeros(2, 2)}
    calls: list[Callable[[], Any]] = [
        lambda: weights.load(file, "cuda"),
        lambda: weights.load(file, "meta"),
        lambda: weights.load(file, "nonsense"),
        lambda: weights.load_into({**linear, "c": torch.zeros(1)}, file),
        lambda: weights.load_into({**linear, "a": torch.zeros(11)}, file),
        lambda: weights.load_into({**linear, "a": torch.zeros(10, dtype=torch.float64)}, file),
        lambda: weights.load_into({**linear, "a": torch.zeros(10, device="meta")}, file),
        lambda: weights.load_into({**linear, "b": torch.zeros(2, 2).t()[:, :1].expand(2, 2)}, file),
        lambda: weights.load_into(42, file),
    ]
    raised = []
    for call in calls:
        try:
            call()
        except GlowplugError as error:
            raised.append([error.code, error.message, bool(error.remedy)])
        else:
            raised.append(None)
    return [raised, bool((linear["a"] == 0).all() and (linear["b"] == 0).all())]


class Tied(torch.nn.Module):
    """As language models have it: one matrix at both ends, a buffer, and one that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.body = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.zeros(16))
        self.register_buffer("positions", torch.arange(16.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(self.embed(tokens) * self.scale + self.positions)))


TOKENS = torch.arange(50)


def tied_file(folder: str, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    model = Tied()
    model.scale.fill_(1.5)
    state = {
        name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "head.weight"
    }
    file = Path(folder) / "tied.safetensors"
    save_file(state, file)
    return file


@check
def into_a_module(folder: str) -> dict[str, Any]:
    file = tied_file(folder)
    torch.manual_seed(2)
    ours, theirs = Tied(), Tied()
    before = [id(parameter) for parameter in ours.parameters()]
    filled = weights.load_into(ours, file)
    theirs.load_state_dict(load_file(file), strict=False)
    return {
        "filled": [filled.tensors, filled.size_bytes, list(filled.unused)],
        "same objects": before == [id(parameter) for parameter in ours.parameters()],
        "still tied": ours.head.weight is ours.embed.weight,
        "same": bits(ours(TOKENS)) == bits(theirs(TOKENS)),
        "trains": ours.body.weight.requires_grad,
    }


@check
def renamed(folder: str) -> dict[str, Any]:
    file = Path(folder) / "prefixed.safetensors"
    save_file({"model.a": torch.full((3,), 7.0), "rope.inv": torch.ones(2)}, file)
    target = {"a": torch.zeros(3), "b": torch.zeros(1)}
    filled = weights.load_into(
        target,
        file,
        rename=lambda name: name.removeprefix("model.") if "rope" not in name else None,
        strict=False,
    )
    return {"a": target["a"].tolist(), "b": target["b"].tolist(), "unused": list(filled.unused)}


@check
def bounded(folder: str) -> dict[str, Any]:
    file = Path(folder) / "many.safetensors"
    save_file({f"t{number:02}": torch.full((10_000,), float(number)) for number in range(50)}, file)
    reading = weights.Reading(threads=3, block_bytes=20_000, ahead_bytes=100_000)
    right = []
    for name, tensor in weights.iterate(file, wanted=lambda name: name != "t07", reading=reading):
        right.append(bool((tensor == int(name[1:])).all()))
    early = weights.iterate(file, reading=reading)
    next(early)
    early.close()
    return {"right": right.count(True), "all": len(right)}


def released_tied(folder: str) -> tuple[Tied, streaming.StreamedWeights, Path, bytes]:
    file = tied_file(folder)
    model = Tied().eval()
    weights.load_into(model, file)
    found = find_weights(file)
    tensors = dict(model.state_dict(keep_vars=True))
    chosen = found.chosen()
    streamed = streaming.StreamedWeights(found, chosen, [tensors[entry.name] for _, entry in chosen])
    with torch.inference_mode():
        answer = bits(model(TOKENS))
    return model, streamed, file, answer


@check
def released_and_refilled(folder: str) -> dict[str, Any]:
    model, streamed, _, answer = released_tied(folder)
    before = [id(parameter) for parameter in model.parameters()]
    streamed.release()
    streamed.release()
    held = sum(tensor.untyped_storage().nbytes() for tensor in model.state_dict().values())
    try:
        model(TOKENS)
        failed = False
    except RuntimeError:
        failed = True
    streamed.refill()
    with torch.inference_mode():
        after = bits(model(TOKENS))
    streamed.release()
    streamed.refill()
    return {
        "held": held,
        "fails meanwhile": failed,
        "same": after == answer,
        "same objects": before == [id(parameter) for parameter in model.parameters()],
        "tied": model.head.weight is model.embed.weight,
        "again": bits(model(TOKENS)) == answer,
    }


@check
def refill_refuses_other_weights(folder: str) -> list[str]:
    """Replaced by others of the same shapes; of other shapes; cut off; gone; changed in memory."""
    said = []

    def attempt(spoil: Callable[[Tied, Path], Any], *, before_release: bool = False) -> None:
        model, streamed, file, _ = released_tied(folder)
        if before_release:
            spoil(model, file)
        streamed.release()
        if not before_release:
            spoil(model, file)
        try:
            streamed.refill()
            said.append("accepted")
        except GlowplugError as error:
            said.append(f"{error.code}: {error.message}")

    attempt(lambda model, file: tied_file(folder, seed=5))
    attempt(lambda model, file: save_file({"embed.weight": torch.ones(3)}, file))
    attempt(lambda model, file: os.truncate(file, 1000))
    attempt(lambda model, file: file.unlink())
    attempt(lambda model, file: model.body.weight.data.mul_(2), before_release=True)
    return said


@check
def release_refuses_memory_of_others(folder: str) -> list[str]:
    said = []
    for spoil in (
        lambda model: model.half(),
        lambda model: setattr(model.body.weight, "data", torch.zeros(32, 16)[:16]),
    ):
        model, streamed, _, _ = released_tied(folder)
        spoil(model)
        try:
            streamed.release()
            said.append("accepted")
        except GlowplugError as error:
            said.append(error.message)
    return said


@check
def dropped_models_are_forgotten(folder: str) -> bool:
    model, streamed, _, _ = released_tied(folder)
    del model
    gc.collect()
    streamed.release()
    streamed.refill()
    return True


@check
def pytorch_checksums(folder: str) -> list[bool]:
    """One changed byte anywhere is another sum."""
    found = []
    for count in (1, 7, 8, 9, 1000):
        tensor = noise([count], torch.uint8, count)
        before = streaming.checksum(tensor)
        for at in {0, count // 2, count - 1}:
            tensor[at] ^= 1
            found.append(streaming.checksum(tensor) != before)
            tensor[at] ^= 1
        found.append(streaming.checksum(tensor) == before)
    return found


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"value": CHECKS[request["do"]](**request["with"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
