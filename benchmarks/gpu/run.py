"""Everything about snapshots of a GPU's memory on this machine, in one command.

    python benchmarks/gpu/run.py --sizes 1 4 16 --minutes 10      # a machine with an NVIDIA GPU
    python benchmarks/gpu/run.py --fake --torch-python PYTHON     # no GPU: shows that this program works

Needs root, PyTorch, `cuda-bindings`, `nvidia-ml-py` and `pydantic` (all of it can be carried in: nothing is
fetched), CRIU 4.2 for captures, and this clone; Glowplug need not be installed. For each size a transformer
of random weights is served (torch.compile, one CUDA graph), and measured: cold starts, parked and woken,
captured, restored from the disk, each answer compared bit for bit; then several models taking turns on one
GPU, SIGKILL in every state, and weights streamed against loaded plainly. Beside it the rate of a pinned copy,
which bounds it all.

Writes gpu.json (every sample) and gpu.md after each part, so that a run that is cut off is not lost, and a
picture a size. What finds no room or no time is left out and named; exit code 1 if anything failed, or an
answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import measure
import report
from measure import Budget
from page import draw, page

from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.inventory import read_inventory
from glowplug.types.errors import GlowplugError, RuntimeFailed, SystemUnfit
from servers import Kind, Server

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("cold", "park", "capture", "turns", "kills", "weights")
_PR_SET_CHILD_SUBREAPER = 36
_TOOL_S = 1800.0
_DEVICE_ROOM = 1.2  # weights, activations, context
_HOST_ROOM = 1.5  # the process, and its device memory while it is parked
_DISK_ROOM = 2.3  # the weights, and a snapshot that holds them once more


class Run:
    """One run: its settings, what was found so far, and where that is written."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        self.began = time.monotonic()
        self.budget = Budget(self.began + 60 * arguments.minutes)
        self.device = "fake" if arguments.fake else "cuda"
        self.result: dict[str, Any] = {
            "machine": self._machine(),
            "is_fake": arguments.fake,
            "command": shlex.join(["run.py", *sys.argv[1:]]),
            "sizes": {},
            "left_out": self.budget.left_out,
            "problems": [],
        }

    async def measure(self) -> None:
        """All parts, smallest models first."""
        parts, sizes = self.arguments.parts, sorted(self.arguments.sizes)
        async with GpuGuard(self.work / "guard") as guard:
            if not self.arguments.fake:
                await self._try("copy", self._tool("copy_rate.py"), self.result)
            for size in sizes:
                if self._has_room(size):
                    await self._size(guard, size)
            small = await self._kind(sizes[0])
            if small is None:
                return
            rounds, count, each = self.arguments.rounds, self.arguments.models, self.arguments.kills
            if "turns" in parts:
                turns = measure.take_turns(guard, small, self.work, self.budget, count, rounds)
                await self._try("turns", turns, self.result)
            if "kills" in parts:
                rng = random.Random(0)
                kills = measure.kills(guard, small, self.work, self.budget, each, rng)
                await self._try("kills", kills, self.result)
        if "weights" in parts:
            device = "cpu" if self.arguments.fake else "cuda"
            weights = self._tool("bench_weights.py", str(small.weights), "--device", device, "--json")
            await self._try("weights", weights, self.result)

    async def _size(self, guard: GpuGuard, size: float) -> None:
        """One model: cold, parked, captured. Whatever fails, the other sizes are measured."""
        facts: dict[str, Any] = {}
        self.result["sizes"][f"{size:g}"] = facts
        kind = await self._kind(size)
        if kind is None:
            return
        live: list[Server] = []

        async def cold() -> dict[str, Any]:
            found, server = await measure.cold_starts(kind, self.work, self.budget, self.arguments.cold)
            live.append(server)
            return found

        try:
            await self._try("cold", cold(), facts)
            if not live:
                return
            repeats = self.arguments.repeats
            if "park" in self.arguments.parts:
                parked = measure.park_and_wake(guard, live[0], self.budget, repeats)
                await self._try("parked", parked, facts)
            if "capture" in self.arguments.parts:
                await self._try("restored", self._restored(guard, live, kind, repeats), facts)
        finally:
            for server in live:
                await asyncio.to_thread(server.end)
            if size != min(self.arguments.sizes):
                kind.weights.unlink(missing_ok=True)

    async def _restored(
        self, guard: GpuGuard, live: list[Server], kind: Kind, repeats: int
    ) -> dict[str, Any]:
        """CRIU cannot bring back a process of the fake driver: there one that uses no GPU stands for it."""
        if self.arguments.fake:
            on_cpu = Kind(kind.python, kind.weights, kind.gigabytes, "cpu", compiles=False)
            live.append(await Server(on_cpu, self.work).start())
        image = self.work / "image"
        with_gpu = None if self.arguments.fake else guard
        return await measure.capture_and_restore(with_gpu, live[-1], image, self.budget, repeats)

    async def _kind(self, size: float) -> Kind | None:
        """A model of so many GB, its weights written; None, with the reason noted, if that fails."""
        file = self.work / f"model-{size:g}.safetensors"
        device = "cpu" if self.arguments.fake else "cuda"
        if not file.exists():
            written: dict[str, Any] = {}
            maker = self._tool("model.py", str(file), "--gigabytes", str(size), "--device", device)
            await self._try("weights file", maker, written)
            if not written:
                return None
        compiles = not (self.arguments.fake or self.arguments.no_compile)
        return Kind(self.arguments.torch_python, file, size, self.device, compiles)

    async def _try(self, name: str, work: Awaitable[Any], facts: dict[str, Any]) -> None:
        """Do one part, keep what it found or why it failed, and write everything down."""
        try:
            facts[name] = await work
        except (GlowplugError, OSError, subprocess.SubprocessError) as error:
            self.result["problems"].append(f"{name}: {error}")
        self.save()

    async def _tool(self, script: str, *arguments: str) -> Any:
        """What a script of this folder prints as JSON, under the Python that has PyTorch."""
        command = [self.arguments.torch_python, "-P", str(HERE / script), *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            timeout=_TOOL_S,
            check=False,
            env=environment,
        )
        if done.returncode != 0:
            raise RuntimeFailed(f"{script} ended with {done.returncode}: {done.stderr[-1500:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def _has_room(self, size: float) -> bool:
        """On the disk, the device and in host memory."""
        size_bytes = size * 1e9
        available = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) << 10
        rooms = {
            "disk": (shutil.disk_usage(self.work).free, _DISK_ROOM),
            "host memory": (available, _HOST_ROOM),
            "device memory": (measure.free_device_bytes(), _DEVICE_ROOM),
        }
        for name, (room_bytes, factor) in rooms.items():
            if room_bytes < factor * size_bytes:
                self.budget.left_out.append(
                    f"{size:g} GB: it needs {factor * size:g} GB of {name}, and there are "
                    f"{room_bytes / 1e9:.1f}"
                )
                return False
        return True

    def _machine(self) -> dict[str, Any]:
        inventory = read_inventory()
        if inventory is None or not inventory.devices:
            raise SystemUnfit(
                "This machine has no NVIDIA GPU.", remedy="--fake shows that this program works."
            )
        device = inventory.devices[0]
        versions = "import torch; print(torch.__version__, 'for CUDA', torch.version.cuda)"
        said = subprocess.run(
            [self.arguments.torch_python, "-c", versions],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if said.returncode != 0:
            raise SystemUnfit(
                f"{self.arguments.torch_python} has no PyTorch: {said.stderr.strip()[-300:]}",
                remedy="--torch-python names one that has.",
            )
        return {
            **report.machine(),
            "card": f"FAKE {device.chip}" if self.arguments.fake else device.chip,
            "gpus": len(inventory.devices),
            "gpu_memory_bytes": device.memory_bytes,
            "driver": f"{inventory.driver} (CUDA {inventory.cuda})",
            "state": device.state,
            "torch": said.stdout.strip(),
        }

    def save(self) -> None:
        """All that is known, as JSON and as a page."""
        self.result["seconds"] = time.monotonic() - self.began
        output: Path = self.arguments.output
        output.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("gpu.json", json.dumps(self.result, indent=1)),
            ("gpu.md", "\n".join(page(self.result))),
        ):
            fresh = output / f"{name}.new"
            fresh.write_text(f"{text}\n")
            fresh.replace(output / name)

    @property
    def is_good(self) -> bool:
        """Nothing failed, nothing answered wrongly, no kill left anything."""
        parts = [part for facts in self.result["sizes"].values() for part in facts.values()]
        parts += [self.result["turns"]] if "turns" in self.result else []
        is_right = not any(part["wrong_answers"] for part in parts)
        is_right = is_right and self.result.get("weights", {}).get("is_same", True)
        states = self.result.get("kills", {}).get("states", {}).values()
        bad = sum(counts[name] for counts in states for name in counts if name != "n")
        return is_right and not bad and not self.result["problems"]


def use_fake_driver(work: Path, memory_bytes: int) -> None:
    """Build the test suite's driver, and have this process and its children find it."""
    from tests.snapshot.gpu.machine import H100, Machine, build_driver

    machine = Machine(work / "gpus", build_driver(work), (H100,), memory_bytes)
    os.environ.update({name: machine.environment[name] for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH")})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1.0, 4.0, 16.0, 40.0], help="GB of weights"
    )
    parser.add_argument("--repeats", type=int, default=20, help="wakes and restores a size")
    parser.add_argument("--cold", type=int, default=3, help="cold starts a size")
    parser.add_argument("--models", type=int, default=8, help="models that take turns, of the smallest size")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--kills", type=int, default=5, help="kills in each state")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="cold is always measured"
    )
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="begin nothing that does not fit in here"
    )
    parser.add_argument("--no-compile", action="store_true", help="CUDA graphs only")
    parser.add_argument("--fake", action="store_true", help="a dry run without a GPU, on the tests' driver")
    parser.add_argument("--torch-python", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="a disk with room for models")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    return parser.parse_args(arguments)


def main() -> int:
    """See above."""
    arguments = parse()
    # Restored servers become our children, so that we can reap them; the guard's processes find this clone.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH")))
    )
    with tempfile.TemporaryDirectory(prefix="glowplug-gpu-", dir=arguments.work) as name:
        work = Path(name)
        if arguments.fake:
            use_fake_driver(work, memory_bytes=int(10e9 * max(arguments.sizes)))
        try:
            run = Run(arguments, work)
        except GlowplugError as error:
            print(error, file=sys.stderr)
            return 2
        asyncio.run(run.measure())
        draw(run.result, arguments.output)
        run.save()
    print((arguments.output / "gpu.md").read_text())
    return 0 if run.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
