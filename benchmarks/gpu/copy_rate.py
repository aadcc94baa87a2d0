"""How fast this machine copies between pinned host memory and its GPU, which bounds every wake; as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

REPEATS = 20


def rate(target: torch.Tensor, source: torch.Tensor) -> dict[str, float]:
    """Bytes a second: the median, least and most of some copies, each waited for."""
    rates = []
    for _ in range(REPEATS + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        rates.append(source.numel() / (time.perf_counter() - began))
    rates = sorted(rates[2:])
    return {"median": statistics.median(rates), "least": rates[0], "most": rates[-1], "n": REPEATS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    size_bytes = parser.parse_args().bytes
    pinned = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    facts = {
        "size_bytes": size_bytes,
        "to_device_bytes_per_s": rate(device, pinned),
        "to_host_bytes_per_s": rate(pinned, device),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "card": torch.cuda.get_device_name(0),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
