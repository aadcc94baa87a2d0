"""One model behind HTTP, in the process that is parked, captured, restored and killed: what run.py measures.

Runs under the Python that has PyTorch. Ready when it has answered once. ``GET /answer?seed=3`` gives
the SHA-256 of the logits' bits, ``GET /stages`` how long each stage of its start took. One request after the
other, on the main thread, on one CUDA stream.

``--device cuda``: torch.compile for each block, and one CUDA graph of the whole. ``--device fake``: the
weights lie in the memory of the test suite's **fake** driver and are fetched from there for each answer;
``--device cpu``: in host memory. Neither says anything about a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from model import Model, Shape, empty_model, tokens_of

from glowplug import weights

_WARM_RUNS = 3


class Stages:
    """Seconds since the last stage ended, each under its name; the first began with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self._last = time.monotonic() - age_s

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now


class GraphedModel:
    """On a CUDA device: compiled, and its kernels recorded in one graph."""

    def __init__(self, model: Model, shape: Shape, stages: Stages, *, compiles: bool) -> None:
        self._tokens = tokens_of(0, shape).cuda()
        if compiles:
            for block in model.blocks:
                block.compile(dynamic=False)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARM_RUNS):
                model(self._tokens)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        stages.end("compile_s")
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._logits = model(self._tokens)
        torch.cuda.synchronize()
        stages.end("graph_s")

    def answer(self, tokens: torch.Tensor) -> torch.Tensor:
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._logits.cpu()

    @property
    def device_bytes(self) -> int:
        return torch.cuda.memory_reserved()


class HostModel:
    """On the processor."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answer(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._model(tokens)

    @property
    def device_bytes(self) -> int:
        return 0


class FakeDeviceModel(HostModel):
    """On the processor too, but between answers its weights lie on the fake driver's device, nowhere else."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        self._held: list[tuple[ctypes.c_uint64, torch.Tensor, int]] = []
        for parameter in model.parameters():
            address, size_bytes = ctypes.c_uint64(), parameter.numel() * parameter.element_size()
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
            self._held.append((address, parameter, size_bytes))
            pointer = ctypes.c_void_p(parameter.data_ptr())
            self._call("cuMemcpyHtoD_v2", address, pointer, ctypes.c_size_t(size_bytes))
            parameter.zero_()

    def answer(self, tokens: torch.Tensor) -> torch.Tensor:
        for address, parameter, size_bytes in self._held:
            pointer = ctypes.c_void_p(parameter.data_ptr())
            self._call("cuMemcpyDtoH_v2", pointer, address, ctypes.c_size_t(size_bytes))
        logits = super().answer(tokens)
        for _, parameter, _ in self._held:
            parameter.zero_()
        return logits

    @property
    def device_bytes(self) -> int:
        return sum(size_bytes for _, _, size_bytes in self._held)

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._cuda, name)(*arguments)
        if result != 0:
            raise RuntimeError(f"the fake driver answers {name} with {result}")


def handler(model: Any, shape: Shape, stages: Stages) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if self.path.startswith("/answer"):
                logits = model.answer(tokens_of(int(query["seed"][0]), shape))
                raw = bytes(logits.contiguous().view(torch.uint8).numpy().data)
                content: Any = {"sha256": hashlib.sha256(raw).hexdigest(), "token": int(logits.argmax())}
            else:
                content = {"stages": stages.seconds, "device_bytes": model.device_bytes}
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Its log is closed when it is ready: a file that grows cannot be captured."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, required=True, help="what the file was made for")
    parser.add_argument("--device", choices=("cuda", "cpu", "fake"), default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    stages = Stages()
    stages.end("import_s")
    shape = Shape.of(arguments.gigabytes * 1e9)
    on_gpu = arguments.device == "cuda"
    if on_gpu:
        torch.zeros(1, device="cuda")
        stages.end("context_s")
    model = empty_model(shape, "cuda" if on_gpu else "cpu")
    weights.load_into(model, arguments.weights)
    stages.end("weights_s")
    served: Any
    if on_gpu:
        served = GraphedModel(model, shape, stages, compiles=not arguments.no_compile)
    else:
        served = FakeDeviceModel(model) if arguments.device == "fake" else HostModel(model)
    served.answer(tokens_of(0, shape))
    stages.end("first_answer_s")
    server = HTTPServer(("127.0.0.1", arguments.port), handler(served, shape, stages))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    server.serve_forever()


if __name__ == "__main__":
    main()
