"""Weights as PyTorch tensors: loaded one by one or all together, or into those of a module that is there.

PyTorch is imported by the first call, not with this module: programs that load nothing do not pay for it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from glowplug.types.errors import InvalidInput
from glowplug.weights.files import Source, Weights, find_weights
from glowplug.weights.header import Entry
from glowplug.weights.plan import Piece, plan_blocks
from glowplug.weights.reading import BlockReader, HostLanding, Landing, Reading
from glowplug.weights.staging import StagedLanding

TORCH_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
    "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64",
    "F64": "float64", "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""As the safetensors library has it. Types of less than a byte (F4, F6) are refused."""


def load(
    source: Source | Sequence[Source], device: Any = "cpu", *, reading: Reading | None = None
) -> dict[str, Any]:
    """All tensors of ``source``, by name, on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``).

    ``source``: a ``.safetensors`` file, a folder of them (with or without an index), ``ORG/NAME`` of a model
    in Hugging Face's cache, or a list of files. Each tensor has memory of its own, equal bit for bit to what
    ``safetensors.torch.load_file`` makes. Raises NotFound, InvalidInput (a malformed file), Unavailable (it
    cannot be read), DeadlineExceeded.
    """
    return dict(iterate(source, device, reading=reading, is_bounded=False))


def iterate(
    source: Source | Sequence[Source],
    device: Any = "cpu",
    *,
    wanted: Callable[[str], bool] | None = None,
    reading: Reading | None = None,
    is_bounded: bool = True,
) -> Iterator[tuple[str, Any]]:
    """``(name, tensor)`` one by one as they arrive, in the order of the files; those ``wanted``, or all.

    Tensors that nobody has taken yet take up at most ``reading.ahead_bytes`` and one tensor, if it
    ``is_bounded``. Raises as :func:`load`, when it is asked for the tensor that fails.
    """
    weights = find_weights(source)
    chosen = weights.chosen(wanted)
    made = _Made([entry for _, entry in chosen], _device(device))
    for number in read_tensors(weights, chosen, made.tensor, reading, is_bounded=is_bounded):
        yield chosen[number][1].name, made.take(number)


def read_tensors(
    weights: Weights,
    chosen: Sequence[tuple[int, Entry]],
    tensor: Callable[[int], Any],
    reading: Reading | None = None,
    *,
    is_bounded: bool = False,
) -> Iterator[int]:
    """Fill ``tensor(number)`` for each of ``chosen``; the numbers, one by one, as they are whole.

    All tensors are contiguous and on one device; ``tensor`` is called by several threads.
    """
    if not chosen:
        return
    how = reading or Reading()
    sizes_bytes = [entry.size_bytes for _, entry in chosen]
    if not is_bounded:
        how = replace(how, ahead_bytes=max(1, sum(sizes_bytes)))
    landing = _landing(tensor, tensor(0).device, how.block_bytes)
    paths = [file.path for file in weights.files]
    with BlockReader(paths, sizes_bytes, plan_blocks(chosen, how.block_bytes), landing, how) as reader:
        for number in range(len(chosen)):
            reader.wait(number)
            yield number


def torch_dtype(entry: Entry) -> Any:
    """The torch.dtype of a file's tensor. Raises InvalidInput for what this torch has none for."""
    import torch

    dtype = getattr(torch, TORCH_DTYPES.get(entry.dtype, ""), None)
    if dtype is None:
        raise InvalidInput(
            f"PyTorch {torch.__version__} has no dtype for {entry.dtype} (tensor {entry.name[:80]!r}).",
            remedy="Use a newer PyTorch, or weights in another dtype.",
        )
    return dtype


class _Made:
    """Tensors made when their first bytes are about to be read, so that what is not read takes no memory."""

    def __init__(self, entries: Sequence[Entry], device: Any) -> None:
        self._entries = entries
        self._dtypes = [torch_dtype(entry) for entry in entries]  # before anything is read
        self._device = device
        self._lock = threading.Lock()
        self._tensors: dict[int, Any] = {}

    def tensor(self, number: int) -> Any:
        """The one of this number, uninitialised at first."""
        import torch

        with self._lock:
            if number not in self._tensors:
                self._tensors[number] = torch.empty(
                    self._entries[number].shape, dtype=self._dtypes[number], device=self._device
                )
            return self._tensors[number]

    def take(self, number: int) -> Any:
        """The same, which is the caller's from now on."""
        tensor = self.tensor(number)
        with self._lock:
            del self._tensors[number]
        return tensor


def _device(device: Any) -> Any:
    import torch

    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(
            f"{device!r} is no device: {error}.", remedy='Use "cpu" or "cuda", "cuda:1".'
        ) from error
    if known.type not in ("cpu", "cuda"):
        raise InvalidInput(
            f"Weights cannot be loaded onto {known}.", remedy='Load them onto "cpu", then move them.'
        )
    if known.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            "PyTorch sees no CUDA device.", remedy='Load onto "cpu", or give the server a gpu=.'
        )
    return known


def _landing(tensor: Callable[[int], Any], device: Any, block_bytes: int) -> Landing:
    if device.type == "cpu":
        return HostLanding(lambda number: host_bytes(tensor(number)))
    import torch

    callers_stream = torch.cuda.current_stream(device)
    return StagedLanding(lambda: _CudaCopier(tensor, device, callers_stream), block_bytes)


def host_bytes(tensor: Any) -> memoryview:
    """The bytes of a contiguous tensor in host memory, writable. The tensor must outlive them."""
    size_bytes = tensor.numel() * tensor.element_size()
    if not size_bytes:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * size_bytes).from_address(tensor.data_ptr())).cast("B")


class _CudaCopier:
    """Copies on a stream of its own, each after what the caller's stream was asked to do before.

    A fresh tensor may lie where an older one lay that kernels of the caller's stream still read.
    """

    def __init__(self, tensor: Callable[[int], Any], device: Any, callers_stream: Any) -> None:
        import torch

        self._torch = torch
        self._tensor = tensor
        self._callers_stream = callers_stream
        self._stream = torch.cuda.Stream(device)

    def buffer(self, size_bytes: int) -> tuple[Any, memoryview]:
        """PyTorch keeps pinned memory that is given back, so a second load pins nothing."""
        buffer = self._torch.empty(size_bytes, dtype=self._torch.uint8, pin_memory=True)
        return buffer, host_bytes(buffer)

    def copy(self, buffer: Any, start: int, piece: Piece) -> None:
        """See :class:`~glowplug.weights.staging.Copier`."""
        with self._torch.no_grad(), self._torch.cuda.stream(self._callers_stream):
            target = self._tensor(piece.tensor).view(-1).view(self._torch.uint8)
        self._stream.wait_stream(self._callers_stream)
        with self._torch.no_grad(), self._torch.cuda.stream(self._stream):
            part = target[piece.offset : piece.offset + piece.length]
            part.copy_(buffer[start : start + piece.length], non_blocking=True)

    def mark(self) -> Any:
        """An event on the stream."""
        return self._stream.record_event()

    def wait(self, mark: Any) -> None:
        """Blocks this thread only: the interpreter is free meanwhile."""
        mark.synchronize()
