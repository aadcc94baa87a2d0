"""The only process that loads libcuda: it makes the calls that its guard asks for, each in a thread.

It pays cuInit (seconds) once, at its first call, and the start of NVML at the first inventory. A call that
hangs cannot be taken back: then the guard kills this process and starts another. When the guard itself dies,
this process settles what the journal lists, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from glowplug.snapshot.gpu.driver import CheckpointDriver
from glowplug.snapshot.gpu.inventory import Nvml
from glowplug.snapshot.gpu.journal import Journal
from glowplug.snapshot.gpu.protocol import Deadlines, Left, Moves, settle
from glowplug.snapshot.gpu.wire import take_stdout, write_line
from glowplug.snapshot.gpu.words import INVENTORY, CudaState, DeviceMap, DriverCall
from glowplug.types.errors import DeadlineExceeded, GlowplugError


class Calls:
    """Answers questions, at once or later; knows until when those that are under way may take."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loading = threading.Lock()
        self._driver: CheckpointDriver | None = None
        self._nvml: Nvml | None = None
        self._answering = threading.Lock()
        self._under_way: dict[int, float] = {}

    def begin(self, line: bytes) -> None:
        """Answer one question in a thread of its own."""
        message = json.loads(line)
        self._under_way[message["number"]] = time.monotonic() + message["arguments"]["deadline_s"]
        threading.Thread(target=self._answer, args=(message,), daemon=True).start()

    def wait_for_those_under_way(self) -> None:
        """Until each has ended, or had its time: what they do to a process is over then, or it hangs."""
        while any(time.monotonic() < until for until in list(self._under_way.values())):
            time.sleep(0.01)

    def make(self, call: DriverCall, pid: int, deadline_s: float, device_map: DeviceMap) -> str:
        """One call of the driver; returns the state, if that was asked for.

        Raises GpuFailed, SystemUnfit.
        """
        with self._loading:
            self._driver = self._driver or CheckpointDriver()
        if call is DriverCall.STATE:
            return self._driver.state(pid).value
        if call is DriverCall.LOCK:
            self._driver.lock(pid, deadline_s / 2)  # the driver's own limit comes first: that undoes the lock
        elif call is DriverCall.CHECKPOINT:
            self._driver.checkpoint(pid)
        elif call is DriverCall.RESTORE:
            self._driver.restore(pid, device_map)
        else:
            self._driver.unlock(pid)
        return ""

    def _inventory(self) -> dict[str, Any] | None:
        """Raises SystemUnfit, GpuFailed."""
        with self._loading:
            self._nvml = self._nvml or Nvml()
        inventory = self._nvml.read()
        return None if inventory is None else inventory.model_dump(mode="json")

    def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"number": message["number"]}
        try:
            if message["question"] == INVENTORY:
                answer["value"] = self._inventory()
            else:
                answer["value"] = self.make(DriverCall(message["question"]), **message["arguments"])
        except GlowplugError as error:
            answer["error"] = error.to_dict()
        with self._answering, contextlib.suppress(BrokenPipeError):  # the guard is gone: see main
            write_line(self._descriptor, answer)
        self._under_way.pop(message["number"], None)


class OwnDriver:
    """The driver as the protocol wants it, in this process."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def state(self, pid: int, deadline_s: float) -> CudaState:
        """See :class:`~glowplug.snapshot.gpu.protocol.Driver`."""
        return CudaState(await self._make(DriverCall.STATE, pid, deadline_s, {}))

    async def call(self, call: DriverCall, pid: int, deadline_s: float, device_map: DeviceMap) -> None:
        """See :class:`~glowplug.snapshot.gpu.protocol.Driver`."""
        await self._make(call, pid, deadline_s, device_map)

    async def _make(self, call: DriverCall, pid: int, deadline_s: float, device_map: DeviceMap) -> str:
        outcome: Future[str] = Future()
        outcome.set_running_or_notify_cancel()  # it cannot be cancelled, only be left alone

        def make() -> None:
            try:
                outcome.set_result(self._calls.make(call, pid, deadline_s, device_map))
            except GlowplugError as error:
                outcome.set_exception(error)

        threading.Thread(target=make, daemon=True).start()
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(outcome)
        except TimeoutError as error:
            raise DeadlineExceeded(f"The driver hangs in {call} of {pid}.", stage=f"gpu {call}") from error


async def settle_all(journal: Journal, calls: Calls) -> None:
    """What the guard would have done."""
    journal.operations = journal.read()
    for operation in journal.operations:
        moves = Moves(OwnDriver(calls), Deadlines(), operation.device_map)
        if await settle(moves, operation) is not Left.STUCK:
            journal.remove(operation)


def main() -> None:
    """``python -m glowplug.snapshot.gpu.helper --folder JOURNAL``, its lock inherited from the guard."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    journal = Journal(parser.parse_args().folder)
    calls = Calls(take_stdout())
    for line in sys.stdin.buffer:
        calls.begin(line)
    calls.wait_for_those_under_way()
    asyncio.run(settle_all(journal, calls))
    os._exit(0)  # threads that hang in the driver are not waited for


if __name__ == "__main__":
    main()
