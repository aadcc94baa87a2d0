"""Weights into a module: streamed by glowplug.weights, loaded by safetensors, and what the disk gives.

    PYTHON_WITH_TORCH benchmarks/gpu/bench_weights.py --gigabytes 1 --runs 7         # makes a file for it
    PYTHON_WITH_TORCH benchmarks/gpu/bench_weights.py model.safetensors --device cuda

In turn, so that all see the same machine, each after the file was dropped from the page cache: (1) the
file read in order past the page cache (O_DIRECT, 8 MiB at a time), as a yardstick; (2) ``weights.load_into``;
(3) the library's ``load_file``, then ``load_state_dict``; (4) the same with ``backend="pread"``. The module
is there before; what ends in it is compared, bit for bit, in the first round. Budget: (2) at 80 % of the
slower of (1) and a pinned copy.
Prints a page, or with --json one line for run.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import copy_rate
from model import Shape, write_weights
from storage import sequential_read_bytes_per_s

from glowplug import weights
from glowplug.weights.files import find_weights
from glowplug.weights.tensors import host_bytes, torch_dtype

WANTED_SHARE = 0.8


class Target(torch.nn.Module):
    """Parameters for every tensor of a file, named as there but for the dots."""

    def __init__(self, file: Path, device: str) -> None:
        super().__init__()
        for _, entry in find_weights(file).chosen():
            tensor = torch.zeros(entry.shape, dtype=torch_dtype(entry), device=device)
            self.register_parameter(plain(entry.name), torch.nn.Parameter(tensor, requires_grad=False))

    def digest(self) -> str:
        """SHA-256 of all bytes."""
        digest = hashlib.sha256()
        for parameter in self.parameters():
            held = parameter.cpu()  # not to be dropped while its bytes are looked at
            digest.update(host_bytes(held))
        return digest.hexdigest()


def plain(name: str) -> str:
    return name.replace(".", "_")


def streamed(target: Target, file: Path, device: str) -> None:
    weights.load_into(target, file, rename=plain)


def loaded(load_file: Callable[..., Any], backend: str) -> Callable[[Target, Path, str], None]:
    def load(target: Target, file: Path, device: str) -> None:
        found = load_file(file, device=device, backend=backend)
        target.load_state_dict({plain(name): tensor for name, tensor in found.items()})

    return load


def measure(file: Path, device: str, runs: int) -> dict[str, Any]:
    """Bytes a second of each way, run by run."""
    size_bytes = file.stat().st_size
    target = Target(file, device)
    ways: dict[str, Callable[[Target, Path, str], None]] = {"glowplug.weights": streamed}
    try:
        from safetensors.torch import load_file

        ways |= {"safetensors": loaded(load_file, "mmap"), "safetensors, pread": loaded(load_file, "pread")}
    except ImportError:
        pass  # the page has no such rows then
    rates: dict[str, list[float]] = {name: [] for name in ("disk in order", *ways)}
    processor_s: dict[str, list[float]] = {name: [] for name in rates}
    digests: set[str] = set()
    for run in range(runs):
        drop(file)
        before_s = time.process_time()
        rates["disk in order"].append(sequential_read_bytes_per_s(file))
        processor_s["disk in order"].append(time.process_time() - before_s)
        for name, way in ways.items():
            with torch.no_grad():
                for parameter in target.parameters():
                    parameter.zero_()
            drop(file)
            before_s, began = time.process_time(), time.perf_counter()
            way(target, file, device)
            if device != "cpu":
                torch.cuda.synchronize()
            rates[name].append(size_bytes / (time.perf_counter() - began))
            processor_s[name].append(time.process_time() - before_s)
            if run == 0:
                digests.add(target.digest())
    copy = None
    if device != "cpu":
        pinned = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
        copy = copy_rate.rate(torch.empty_like(pinned, device=device), pinned)["median"]
    return {
        "size_bytes": size_bytes,
        "device": device,
        "rates": rates,
        "processor_s": processor_s,
        "load_average_1min": os.getloadavg()[0],
        "copy": copy,
        "is_same": len(digests) == 1,
    }


def drop(file: Path) -> None:
    """Out of the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def page(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    medians = {name: statistics.median(rates) for name, rates in found["rates"].items()}
    size_bytes = found["size_bytes"]
    bound = min(filter(None, (medians["disk in order"], found["copy"])))
    share = medians["glowplug.weights"] / bound
    rows = [
        f"| {name} | {statistics.median(rates) / 1e9:.2f} | {min(rates) / 1e9:.2f} "
        f"| {max(rates) / 1e9:.2f} | {statistics.median(found['processor_s'][name]) * 1e9 / size_bytes:.2f} "
        f"| {len(rates)} |"
        for name, rates in found["rates"].items()
    ]
    copy = "" if found["copy"] is None else f"; a pinned copy has {found['copy'] / 1e9:.2f} GB/s"
    verdict = "met" if share >= WANTED_SHARE else "MISSED"
    return [
        f"{size_bytes / 1e9:.2f} GB to {found['device']}, GB/s; the file is dropped from the page "
        f"cache each time{copy}; load {found['load_average_1min']:.1f} on {os.cpu_count()} cores.",
        "",
        "| way | median | least | most | processor, s a GB | n |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"Streamed: {share:.0%} of the slower of disk and copy (budget {WANTED_SHARE:.0%}: {verdict}). "
        + ("All ways left the same bits." if found["is_same"] else "**THE BITS DIFFER.**"),
    ]


@contextmanager
def model_file(arguments: argparse.Namespace) -> Iterator[Path]:
    """The one that was named, or a fresh one that goes afterwards."""
    if arguments.file is not None:
        yield arguments.file
        return
    with tempfile.TemporaryDirectory(prefix="glowplug-weights-", dir=arguments.work) as folder:
        file = Path(folder) / "model.safetensors"
        write_weights(file, Shape.of(arguments.gigabytes * 1e9), arguments.device)
        yield file


def main() -> int:
    """Exit code 1 when the budget is missed or the bits differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="default: a file of random weights")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with model_file(arguments) as file:
        found = measure(file, arguments.device, arguments.runs)
    lines = page(found)
    print(json.dumps({**found, "lines": lines}) if arguments.json else "\n".join(lines))
    if arguments.json:
        return 0
    return 0 if "MISSED" not in lines[-1] and found["is_same"] else 1


if __name__ == "__main__":
    sys.exit(main())
