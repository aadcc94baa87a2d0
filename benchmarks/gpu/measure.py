"""What run.py measures, one function a question; each returns facts for the JSON file.

Every sample is a dictionary of seconds by stage. An answer that differs from the one that its server gave
when it was new counts as wrong, and no figure is worth anything then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import servers
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.inventory import read_inventory
from glowplug.types.errors import GlowplugError, NotFound
from servers import Kind, Server

_FREED_S = 20.0
_SUSPEND_GUESS_S = 0.5


@dataclass
class Budget:
    """How long the run may take in all. What does not fit any more is left out, and the page says so."""

    ends_at: float
    left_out: list[str] = field(default_factory=list)

    def has(self, seconds: float, what: str) -> bool:
        """Whether something that takes about so long still fits."""
        fits = time.monotonic() + seconds < self.ends_at
        if not fits and what not in self.left_out:
            self.left_out.append(what)
        return fits


@dataclass
class Samples:
    """Repeats of one thing, as many as the budget has room for."""

    budget: Budget
    wanted: int
    what: str
    taken: list[dict[str, float]] = field(default_factory=list)
    wrong: int = 0

    async def collect(self, one: Callable[[], Awaitable[tuple[dict[str, float], bool]]]) -> None:
        """Take them. ``one`` returns a sample, and whether its answers were right."""
        while len(self.taken) < self.wanted:
            longest_s = max((sample["total_s"] for sample in self.taken), default=0.0)
            if not self.budget.has(1.5 * longest_s, f"{self.what}: repeats after {len(self.taken)}"):
                return
            sample, is_right = await one()
            self.taken.append({name: round(seconds, 5) for name, seconds in sample.items()})
            self.wrong += not is_right

    def facts(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "n": len(self.taken),
            "wanted": self.wanted,
            "wrong_answers": self.wrong,
            "samples": self.taken,
        }


async def cold_starts(kind: Kind, work: Path, budget: Budget, wanted: int) -> tuple[dict[str, Any], Server]:
    """Starts from nothing, files in the page cache or not as they happen to be. The last one runs on."""
    kept: list[Server] = []

    async def one() -> tuple[dict[str, float], bool]:
        for old in kept:
            await asyncio.to_thread(old.end)
        server = await Server(kind, work).start()
        first = kept[0].answers if kept else server.answers
        kept[:] = [server]
        return {**server.stages, "total_s": server.cold_s}, server.answers == first

    samples = Samples(budget, wanted, f"{kind.gigabytes:g} GB cold")
    await samples.collect(one)
    if not kept:
        raise NotFound("There was no time for a single start.", remedy="Give --minutes more.")
    return samples.facts(), kept[0]


async def park_and_wake(guard: GpuGuard, server: Server, budget: Budget, wanted: int) -> dict[str, Any]:
    """Device memory to the host and back, and the first answer after it."""
    freed: list[int] = []

    async def one() -> tuple[dict[str, float], bool]:
        before = await asyncio.to_thread(free_device_bytes)
        began = time.monotonic()
        parked = await guard.suspend([server.pid])
        parked_s = time.monotonic() - began
        freed.append(await asyncio.to_thread(free_device_bytes) - before)
        began = time.monotonic()
        woken = await guard.resume([server.pid])
        awake_s = time.monotonic() - began
        await server.ask()
        total_s = time.monotonic() - began
        sample = {
            **parked.seconds,
            **woken.seconds,
            "park_s": parked_s,
            "wake_s": awake_s,
            "total_s": total_s,
        }
        return sample, await server.is_right()

    samples = Samples(budget, wanted, f"{server.kind.gigabytes:g} GB park and wake")
    await samples.collect(one)
    return {**samples.facts(), "freed_bytes": freed, "device_bytes": server.device_bytes}


async def capture_and_restore(
    guard: GpuGuard | None, server: Server, image: Path, budget: Budget, wanted: int
) -> dict[str, Any]:
    """Memory to the disk, and copies of it from the disk, one after the other. The last copy is left running.

    Without a guard (a server that uses no GPU) nothing is suspended.
    """
    sample: dict[str, float] = {}
    began = time.monotonic()
    if guard is not None:
        sample |= (await guard.suspend([server.pid])).seconds
    suspended = time.monotonic()
    size_bytes = await server.dump(image)
    sample |= {"suspend_s": suspended - began, "dump_s": time.monotonic() - suspended}

    async def one() -> tuple[dict[str, float], bool]:
        if samples.taken:
            await asyncio.to_thread(server.kill)
        await asyncio.to_thread(servers.drop_from_page_cache, image)
        began = time.monotonic()
        await server.restore(image)
        seconds = {"host_s": time.monotonic() - began}
        if guard is not None:
            seconds |= (await guard.resume([server.pid])).seconds
        seconds["awake_s"] = time.monotonic() - began
        await server.ask()
        seconds["total_s"] = time.monotonic() - began
        return seconds, await server.is_right()

    samples = Samples(budget, wanted, f"{server.kind.gigabytes:g} GB restore")
    try:
        await samples.collect(one)
    finally:
        await asyncio.to_thread(shutil.rmtree, image, ignore_errors=True)
    return {"capture": sample, "snapshot_bytes": size_bytes, **samples.facts()}


async def take_turns(
    guard: GpuGuard, kind: Kind, work: Path, budget: Budget, count: int, rounds: int
) -> dict[str, Any]:
    """``count`` models on one GPU, one of them awake at a time: the one awake parks, the next one wakes."""
    crew: list[Server] = []
    try:
        for number in range(count):
            if not budget.has(crew[0].cold_s if crew else 0.0, f"turns: models after {number}"):
                break
            crew.append(await Server(kind, work).start())
            await guard.suspend([crew[-1].pid])
        if len(crew) < 2:
            raise NotFound("There was no time for two models.", remedy="Give --minutes more.")
        await guard.resume([crew[0].pid])
        awake = [crew[0]]
        queue: list[Server] = [server for _ in range(rounds) for server in crew][1:]

        async def one() -> tuple[dict[str, float], bool]:
            following = queue.pop(0)
            began = time.monotonic()
            await guard.suspend([awake[0].pid])
            parked = time.monotonic()
            await guard.resume([following.pid])
            woken = time.monotonic()
            await following.ask()
            answered = time.monotonic()
            awake[0] = following
            sample = {"park_s": parked - began, "wake_s": woken - parked, "total_s": answered - began}
            return sample, await following.is_right()

        samples = Samples(budget, len(queue), "turns")
        await samples.collect(one)
        return {"models": len(crew), "gigabytes_each": kind.gigabytes, **samples.facts()}
    finally:
        for server in crew:
            await asyncio.to_thread(server.end)


async def kills(
    guard: GpuGuard, kind: Kind, work: Path, budget: Budget, each: int, rng: random.Random
) -> dict[str, Any]:
    """SIGKILL in every state: its device memory is free again, and another server is parked as ever."""
    if not budget.has(0.0, "kills"):
        raise NotFound("There was no time to kill anybody.", remedy="Give --minutes more.")
    witness = await Server(kind, work).start()
    outcomes: dict[str, dict[str, Any]] = {}
    suspend_s = _SUSPEND_GUESS_S
    try:
        for state in ("running", "suspended", "while it is suspended", "while it is resumed"):
            counts = {"n": 0, "memory_not_freed": 0, "witness_wrong": 0, "guard_failed": 0}
            outcomes[state] = counts
            for _ in range(each):
                if not budget.has(2 * witness.cold_s, f"kill {state}: after {counts['n']}"):
                    break
                victim = await Server(kind, work).start()
                free_before = await asyncio.to_thread(free_device_bytes)
                began = time.monotonic()
                await _kill_in(state, guard, victim, rng.uniform(0, suspend_s))
                if state == "suspended":
                    suspend_s = time.monotonic() - began
                counts["n"] += 1
                counts["memory_not_freed"] += not await _is_freed(free_before + victim.device_bytes)
                try:
                    await guard.suspend([witness.pid])
                    await guard.resume([witness.pid])
                    counts["witness_wrong"] += not await witness.is_right()
                except GlowplugError:
                    counts["guard_failed"] += 1
        return {"gigabytes": kind.gigabytes, "states": outcomes, "guard_counts": await guard.counts()}
    finally:
        await asyncio.to_thread(witness.end)


def free_device_bytes() -> int:
    """Of the first GPU, as NVML says; 0 without one."""
    inventory = read_inventory()
    return inventory.devices[0].free_bytes if inventory and inventory.devices else 0


async def _kill_in(state: str, guard: GpuGuard, victim: Server, after_s: float) -> None:
    if state in ("suspended", "while it is resumed"):
        await guard.suspend([victim.pid])
    if state.startswith("while"):
        begin = guard.suspend if state == "while it is suspended" else guard.resume
        under_way = asyncio.create_task(begin([victim.pid]))
        await asyncio.sleep(after_s)
        await asyncio.to_thread(victim.kill)
        with contextlib.suppress(GlowplugError):  # it died under the call, or after it
            await under_way
    else:
        await asyncio.to_thread(victim.kill)


async def _is_freed(wanted_bytes: int) -> bool:
    """What was its is free again, but for a MiB: the driver frees what the dead held soon, not at once."""
    deadline = time.monotonic() + _FREED_S
    while await asyncio.to_thread(free_device_bytes) + (1 << 20) < wanted_bytes:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
