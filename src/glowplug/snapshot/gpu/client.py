"""How the rest of Glowplug suspends and resumes a replica's GPU state: through a guard of its own."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glowplug.snapshot.gpu.inventory import READ_S, Inventory
from glowplug.snapshot.gpu.protocol import Deadlines
from glowplug.snapshot.gpu.wire import Asker
from glowplug.snapshot.gpu.words import CudaState, DeviceMap
from glowplug.types.errors import Unavailable

_FIND_S = 120.0  # the first question waits for cuInit, and for what a predecessor left to be settled
_SETTLE_FACTOR = 6
_INVENTORY_S = READ_S + 10.0


@dataclass(frozen=True)
class Moved:
    """What was suspended or resumed. ``seconds`` has one entry a phase, such as ``checkpoint_s``."""

    pids: list[int]
    seconds: dict[str, float]


class GpuGuard:
    """A guard process that works in ``folder``, one at a time; close it, from the same event loop.

    Everything below raises GpuFailed or DeadlineExceeded when the driver fails. ``details["left"]`` says how
    the processes were left then (:class:`~glowplug.snapshot.gpu.protocol.Left`). Unavailable means that the
    guard died: once the next question is answered, the processes run or are dead. Conflict: another guard
    works in the folder, or the processes are not in the state for it.
    """

    def __init__(self, folder: Path, deadlines: Deadlines | None = None) -> None:
        self._folder = folder
        self._deadlines = deadlines or Deadlines()
        self._guard: Asker | None = None
        self._is_closed = False
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """What is suspended is resumed, and the guard and its helper end. Nothing if it never was asked."""
        self._is_closed = True
        if self._guard is not None:
            await self._guard.close(_limit_s(self._deadlines))

    async def find(self, roots: list[int]) -> dict[int, CudaState]:
        """The processes among ``roots`` and their descendants that use CUDA, and their states."""
        states = await self._ask("find", self._deadlines, roots=roots)
        return {int(pid): CudaState(state) for pid, state in states.items()}

    async def suspend(
        self, roots: list[int], deadlines: Deadlines | None = None, *, is_kept: bool = False
    ) -> Moved:
        """Move the device memory of all CUDA processes below ``roots`` to the host, and free the devices.

        ``deadlines`` of this operation, instead of the guard's. Raises NotFound if none of them uses CUDA.
        ``is_kept``: once suspended they stay so, whoever ends, until they are asked to be resumed: the caller
        has to remember them.
        """
        answer = await self._ask("suspend", deadlines or self._deadlines, roots=roots, is_kept=is_kept)
        return Moved(**answer)

    async def resume(
        self, roots: list[int], device_map: DeviceMap | None = None, deadlines: Deadlines | None = None
    ) -> Moved:
        """Move it back, to the devices that ``device_map`` names for *every* old one, or to the same ones."""
        answer = await self._ask(
            "resume", deadlines or self._deadlines, roots=roots, device_map=device_map or {}
        )
        return Moved(**answer)

    async def inventory(self) -> Inventory | None:
        """The GPUs of this machine, read by the helper, which is there anyway; None without a driver.

        Raises as :func:`~glowplug.snapshot.gpu.inventory.read_inventory`, and Unavailable.
        """
        try:
            found = await self._answer("devices", _INVENTORY_S)
        except Unavailable:  # it died of something else, and a successor is there
            found = await self._answer("devices", _INVENTORY_S)
        return None if found is None else Inventory.model_validate(found)

    async def counts(self) -> dict[str, int]:
        """How often each call was made, refused, hung, and how operations ended, since the guard started."""
        return {name: int(count) for name, count in (await self._answer("count", _FIND_S)).items()}

    async def _ask(self, question: str, deadlines: Deadlines, **arguments: Any) -> Any:
        times = deadlines.model_dump()
        return await self._answer(question, _limit_s(deadlines), deadlines=times, **arguments)

    async def _answer(self, question: str, limit_s: float, **arguments: Any) -> Any:
        guard = await self._started()
        try:
            return await guard.ask(question, limit_s, **arguments)
        except Unavailable:
            await self._started()  # whose first deed is to settle what this one left
            raise

    async def _started(self) -> Asker:
        async with self._starting:
            if self._is_closed:
                raise Unavailable("The GPU guard was closed.", remedy="Try again when the agent is back.")
            if self._guard is None or not self._guard.is_alive:
                command = [sys.executable, "-P", "-m", "glowplug.snapshot.gpu.guard"]
                self._guard = await Asker.start("GPU guard", [*command, "--folder", str(self._folder)])
            return self._guard


def _limit_s(deadlines: Deadlines) -> float:
    """Longer than the guard needs for the slowest way: it answers by itself."""
    return _FIND_S + _SETTLE_FACTOR * float(sum(deadlines.model_dump().values()))
