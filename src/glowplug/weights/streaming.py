"""Weights that are in no snapshot: let go before memory is captured, read again in every restored copy.

``Snapshot(weights="stream")`` sets :data:`VARIABLE` in the server's containers. What
:func:`glowplug.weights.load_into` fills there is registered with :mod:`glowplug.hooks`: before the freeze
each tensor's storage is emptied and its bytes are summed up; after a restore the storage is made anew, under
the same tensors, and filled from the same files by the same parallel reads, before the copy's canary.

Promise: a copy computes with the bytes that the captured replica had, or it does not serve. A file that has
changed since, weights that were changed in memory after they were loaded, and a read that fails are errors of
the hook, and the copy is given up for a cold start.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Any

from glowplug import hooks
from glowplug.types.errors import InvalidInput
from glowplug.weights.files import Weights, find_weights
from glowplug.weights.header import Entry
from glowplug.weights.reading import Reading
from glowplug.weights.tensors import read_tensors

VARIABLE = "GLOWPLUG_WEIGHTS"
STREAM = "stream"
_WORD_BYTES = 8
_OWN_MEMORY = "Call load_into last: when the module is on its device, in its dtype, and no more is fused."


def is_wanted() -> bool:
    """Whether this process runs in a server that was deployed with ``Snapshot(weights="stream")``."""
    return os.environ.get(VARIABLE) == STREAM


def stream(
    weights: Weights, chosen: Sequence[tuple[int, Entry]], tensors: Sequence[Any], reading: Reading | None
) -> None:
    """Leave these tensors, which hold the files' ``chosen``, out of snapshots from now on."""
    streamed = StreamedWeights(weights, chosen, tensors, reading)
    hooks.before_snapshot(streamed.release)
    hooks.after_restore(streamed.refill)


class StreamedWeights:
    """The tensors of one load. They are not kept alive: those that the program has dropped are skipped."""

    def __init__(
        self,
        weights: Weights,
        chosen: Sequence[tuple[int, Entry]],
        tensors: Sequence[Any],
        reading: Reading | None = None,
    ) -> None:
        self._weights = weights
        self._chosen = list(chosen)
        self._tensors = [weakref.ref(tensor) for tensor in tensors]
        self._reading = reading
        self._sums: dict[int, int] = {}

    def release(self) -> None:
        """Give the tensors' memory back; to read them before :meth:`refill` is an error. Twice is once.

        Raises InvalidInput for a tensor that has other memory, or memory that others use, too.
        """
        for number, tensor in self._alive():
            if number in self._sums or not tensor.numel():
                continue
            _check_owns_memory(tensor, self._chosen[number][1])
            self._sums[number] = checksum(tensor)
            tensor.untyped_storage().resize_(0)
        _empty_device_caches()

    def refill(self) -> None:
        """Make the memory anew, at whatever address, and read the files into it.

        Raises InvalidInput for files that are not those that were captured, or as
        :func:`glowplug.weights.load`; the tensors then hold no usable values.
        """
        began = time.monotonic()
        alive = {number: tensor for number, tensor in self._alive() if number in self._sums}
        numbers = sorted(alive)
        files = find_weights([file.path for file in self._weights.files])
        for before, now in zip(self._weights.files, files.files, strict=True):
            if before.header != now.header:
                raise _changed(str(now.path))
        chosen = [self._chosen[number] for number in numbers]
        tensors = [alive[number] for number in numbers]
        for (_, entry), tensor in zip(chosen, tensors, strict=True):
            tensor.untyped_storage().resize_(entry.size_bytes)
        for _ in read_tensors(files, chosen, tensors.__getitem__, self._reading):
            pass
        for number in numbers:
            if checksum(alive[number]) != self._sums[number]:
                file, entry = self._chosen[number]
                raise _changed(f"{entry.name} of {files.files[file].path}")
        self._sums.clear()
        size_bytes, seconds = sum(entry.size_bytes for _, entry in chosen), time.monotonic() - began
        print(
            f"glowplug.weights: streamed {size_bytes / 1e9:.2f} GB in {seconds:.2f} s",
            file=sys.stderr,
            flush=True,
        )

    def _alive(self) -> list[tuple[int, Any]]:
        tensors = [(number, reference()) for number, reference in enumerate(self._tensors)]
        return [(number, tensor) for number, tensor in tensors if tensor is not None]


def checksum(tensor: Any) -> int:
    """The sum of a tensor's eight-byte words, where it lies: as fast as its memory.

    It finds files that were replaced and copies that went wrong, not somebody who means harm.
    """
    import torch

    with torch.no_grad():
        flat = tensor.detach().view(-1).view(torch.uint8)
        whole = flat.numel() // _WORD_BYTES * _WORD_BYTES
        words = flat[:whole].view(torch.int64).sum() if whole else torch.zeros((), dtype=torch.int64)
        rest = flat[whole:].sum(dtype=torch.int64)
        return (int(words) + int(rest)) % (1 << 64)


def _check_owns_memory(tensor: Any, entry: Entry) -> None:
    storage = tensor.untyped_storage()
    is_as_loaded = tensor.numel() * tensor.element_size() == entry.size_bytes and tensor.is_contiguous()
    if not is_as_loaded or storage.nbytes() != entry.size_bytes or not storage.resizable():
        raise InvalidInput(
            f"{entry.name!r} cannot be left out of snapshots: it has not exactly its own "
            f"{entry.size_bytes} bytes of memory any more, or never had.",
            remedy=_OWN_MEMORY,
        )


def _empty_device_caches() -> None:
    """PyTorch keeps device memory that is given back; a GPU's snapshot would hold it."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _changed(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} is not what the captured replica had: the file has changed since, or the weights were "
        "changed in memory after load_into.",
        remedy=f"Put new weights in a new place. {_OWN_MEMORY}",
    )
