"""The guard: suspends and resumes replicas on request, and leaves no process locked, whoever dies.

It loads none of NVIDIA's libraries. Its helper does, and is killed when a call outlives its deadline. When
its client goes away it resumes what it suspended, as it does for what a predecessor left (see
:mod:`glowplug.snapshot.gpu.journal`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from glowplug.kernel.processes import process_tree
from glowplug.snapshot.gpu import protocol
from glowplug.snapshot.gpu.inventory import READ_S, STAGE
from glowplug.snapshot.gpu.journal import Journal, Operation, Target
from glowplug.snapshot.gpu.protocol import Deadlines, Left, Moves
from glowplug.snapshot.gpu.wire import LINE_BYTES, Asker, write_line
from glowplug.snapshot.gpu.words import INVENTORY, CudaState, DeviceMap, DriverCall, uuid_bytes
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    GpuFailed,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

_HELPER_EXIT_S = 2.0
_INIT_S = 60.0
"""cuInit takes seconds, more so without persistence mode; it is not part of a call's own deadline."""


class HelperDriver:
    """Calls made by the helper, which is started when needed and again when it died or hung."""

    def __init__(self, journal: Journal, counts: Counter[str]) -> None:
        self._journal = journal
        self._counts = counts
        self._helper: Asker | None = None
        self._is_initialised = False
        self._calls_under_way = 0
        self._starting = asyncio.Lock()

    async def inventory(self) -> dict[str, Any] | None:
        """The GPUs, as NVML tells of them in the helper.

        A library that hangs costs the helper its life, unless it is making a call. Raises SystemUnfit,
        GpuFailed, DeadlineExceeded, Unavailable.
        """
        helper = await self._running()
        try:
            found: dict[str, Any] | None = await helper.ask(INVENTORY, READ_S, deadline_s=READ_S)
        except DeadlineExceeded as error:
            if not self._calls_under_way:
                self._discard(helper)
            raise DeadlineExceeded(error.message, remedy=error.remedy, stage=STAGE) from error
        return found

    async def state(self, pid: int, deadline_s: float) -> CudaState:
        """See :class:`~glowplug.snapshot.gpu.protocol.Driver`. Not counted: it is asked of every process."""
        return CudaState(await self._ask(DriverCall.STATE, pid, deadline_s, {}))

    async def call(self, call: DriverCall, pid: int, deadline_s: float, device_map: DeviceMap) -> None:
        """See :class:`~glowplug.snapshot.gpu.protocol.Driver`."""
        try:
            await self._ask(call, pid, deadline_s, device_map)
        except GpuFailed:
            self._counts[f"{call} refused"] += 1
            raise
        self._counts[call] += 1

    async def close(self) -> None:
        """End the helper; nothing is left to settle."""
        if self._helper is not None:
            await self._helper.close(_HELPER_EXIT_S)

    async def _ask(self, call: DriverCall, pid: int, deadline_s: float, device_map: DeviceMap) -> Any:
        helper = await self._initialised()
        self._calls_under_way += 1
        try:
            return await helper.ask(call, deadline_s, pid=pid, deadline_s=deadline_s, device_map=device_map)
        except DeadlineExceeded:
            self._counts[f"{call} hung"] += 1
            self._discard(helper)
            raise
        except Unavailable:
            self._counts["helper died"] += 1
            raise
        finally:
            self._calls_under_way -= 1

    async def _running(self) -> Asker:
        async with self._starting:
            if self._helper is None or not self._helper.is_alive:
                folder = str(self._journal.folder)
                self._helper = await Asker.start(
                    "GPU helper",
                    [sys.executable, "-P", "-m", "glowplug.snapshot.gpu.helper", "--folder", folder],
                    pass_fds=(self._journal.lock_descriptor,),
                )
                self._journal.name_helper(self._helper.pid)
                self._is_initialised = False
            return self._helper

    async def _initialised(self) -> Asker:
        helper = await self._running()
        async with self._starting:
            if not self._is_initialised and helper is self._helper:
                await self._initialise(helper)
                self._is_initialised = True
        return helper

    async def _initialise(self, helper: Asker) -> None:
        """Have it load the driver: the state of a process that uses no CUDA is not known, once it has."""
        try:
            await helper.ask(DriverCall.STATE, _INIT_S, pid=os.getpid(), deadline_s=_INIT_S, device_map={})
        except GpuFailed:
            return
        except DeadlineExceeded:
            self._discard(helper)
            raise

    def _discard(self, helper: Asker) -> None:
        """A thread of it hangs in the driver, and always will."""
        helper.kill()
        if self._helper is helper:
            self._helper = None


class Guard:
    """What a client may ask; see :class:`~glowplug.snapshot.gpu.client.GpuGuard`."""

    def __init__(self, journal: Journal) -> None:
        self.counts: Counter[str] = Counter()
        self._journal = journal
        self._busy: set[int] = set()
        self._driver = HelperDriver(journal, self.counts)
        self.questions: dict[str, Callable[..., Awaitable[Any]]] = {
            "find": self.find, "suspend": self.suspend, "resume": self.resume, "count": self.count,
            "devices": self.devices,
        }  # fmt: skip

    async def find(self, roots: list[int], deadlines: dict[str, float]) -> dict[int, str]:
        """The processes below ``roots`` that use CUDA, and their states."""
        return {target.pid: state.value for target, state in await self._find(roots, Deadlines(**deadlines))}

    async def count(self) -> dict[str, int]:
        """How often each thing happened."""
        return dict(self.counts)

    async def devices(self) -> dict[str, Any] | None:
        """The GPUs of this machine."""
        return await self._driver.inventory()

    async def suspend(
        self, roots: list[int], deadlines: dict[str, float], is_kept: bool = False
    ) -> dict[str, Any]:
        """Lock all, checkpoint all. ``is_kept``: then they are the client's, and nobody settles them."""
        moves = Moves(self._driver, Deadlines(**deadlines))
        operation = await self._operation(roots, moves)

        async def find() -> list[Target]:
            return [target for target, _ in await self._find(roots, moves.deadlines)]

        with self._at_work(operation):
            await protocol.demand(moves, operation.targets, CudaState.RUNNING)
            self._journal.add(operation)
            try:
                await protocol.suspend(moves, operation.targets, find)
            except GlowplugError as error:
                await self._settle(moves, operation, error)
                raise
            if is_kept:
                self._journal.remove(operation)
        return {"pids": operation.pids, "seconds": moves.seconds}

    async def resume(
        self, roots: list[int], device_map: DeviceMap, deadlines: dict[str, float]
    ) -> dict[str, Any]:
        """Restore all, unlock all."""
        for device in itertools.chain(device_map, device_map.values()):
            uuid_bytes(device)
        moves = Moves(self._driver, Deadlines(**deadlines), device_map)
        operation = await self._operation(roots, moves)
        with self._at_work(operation):
            await protocol.demand(moves, operation.targets, CudaState.CHECKPOINTED)
            self._journal.add(operation)
            try:
                await protocol.resume(moves, operation.targets)
            except GlowplugError as error:
                await self._abort_resume(moves, operation, error)
                raise
            self._journal.remove(operation)
        return {"pids": operation.pids, "seconds": moves.seconds}

    async def settle_all(self) -> None:
        """Nobody answers for what the journal lists any more."""
        for operation in self._journal.operations:
            await self._settle(Moves(self._driver, Deadlines(), operation.device_map), operation)

    async def close(self) -> None:
        """Settle everything and end the helper."""
        await self.settle_all()
        await self._driver.close()

    async def _abort_resume(self, moves: Moves, operation: Operation, error: GlowplugError) -> None:
        """What was refused, and left as it was, may be tried again: with more room, or on other devices."""
        if isinstance(error, GpuFailed) and await protocol.is_all_suspended(moves, operation.targets):
            self._journal.add(Operation(targets=operation.targets))  # settled, it would go where it was
            self._note(Left.SUSPENDED, error)
        else:
            await self._settle(moves, operation, error)

    @contextmanager
    def _at_work(self, operation: Operation) -> Iterator[None]:
        """One request at a time for a process. Raises Conflict."""
        pids = set(operation.pids)
        if pids & self._busy:
            raise Conflict(
                "This replica is being suspended or resumed already.",
                remedy="Wait until that has ended.",
                pids=sorted(pids),
            )
        self._busy |= pids
        try:
            yield
        finally:
            self._busy -= pids

    async def _settle(self, moves: Moves, operation: Operation, error: GlowplugError | None = None) -> None:
        left = await protocol.settle(moves, operation)
        if left is not Left.STUCK:
            self._journal.remove(operation)
        self._note(left, error)

    def _note(self, left: Left, error: GlowplugError | None) -> None:
        self.counts[f"left {left}"] += 1
        if error is not None:
            error.details["left"] = left.value

    async def _operation(self, roots: list[int], moves: Moves) -> Operation:
        targets = [target for target, _ in await self._find(roots, moves.deadlines)]
        if not targets:
            raise NotFound(
                "None of these processes uses CUDA.",
                remedy="Wait until the server is ready: it may not have touched the GPU yet.",
                pids=roots,
            )
        return Operation(targets=targets, device_map=moves.device_map)

    async def _find(self, roots: list[int], deadlines: Deadlines) -> list[tuple[Target, CudaState]]:
        found = []
        for target in filter(None, map(Target.of, process_tree(roots))):
            try:
                found.append((target, await self._driver.state(target.pid, deadlines.state_s)))
            except GpuFailed:
                continue  # it uses no CUDA
        return found


async def serve(guard: Guard, reader: asyncio.StreamReader) -> None:
    """Answer questions until there are no more; those under way are finished."""
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(_answer(guard, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks, return_exceptions=True)
    await guard.close()


async def _answer(guard: Guard, message: dict[str, Any]) -> None:
    answer: dict[str, Any] = {"number": message["number"]}
    try:
        answer["value"] = await guard.questions[message["question"]](**message["arguments"])
    except GlowplugError as error:
        answer["error"] = error.to_dict()
    except OSError as error:  # of the journal: before the first call, or when all is settled
        answer["error"] = _journal_failed(error).to_dict()
    with suppress(BrokenPipeError):  # the client is gone, and what it asked for is settled
        write_line(sys.stdout.fileno(), answer)


def _journal_failed(error: OSError) -> ResourceExhausted:
    return ResourceExhausted(
        f"The GPU guard cannot write its journal: {error.strerror}.",
        remedy="Make room on that disk, and run as the owner of the state directory.",
        path=error.filename,
    )


async def run(journal: Journal) -> None:
    """Settle what a predecessor left, then serve the client on stdin and stdout."""
    guard = Guard(journal)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    stdin, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    loop.add_signal_handler(signal.SIGTERM, stdin.close)
    await guard.settle_all()
    await serve(guard, reader)


def main() -> None:
    """``python -m glowplug.snapshot.gpu.guard --folder JOURNAL``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    journal = Journal(parser.parse_args().folder)
    deadlines = Deadlines()
    try:
        journal.acquire(deadlines.lock_s + deadlines.restore_s)
    except Conflict as error:
        _refuse(error)
    except OSError as error:
        _refuse(_journal_failed(error))
    asyncio.run(run(journal))


def _refuse(error: GlowplugError) -> NoReturn:
    """The client learns why as the answer to its first question."""
    number = json.loads(sys.stdin.buffer.readline())["number"]
    write_line(sys.stdout.fileno(), {"number": number, "error": error.to_dict()})
    sys.exit(1)


if __name__ == "__main__":
    main()
