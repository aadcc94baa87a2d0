"""Questions to a child process: one JSON object a line on its stdin and stdout, answered in any order.

The guard asks its helper this way, and whoever uses the guard asks the guard. Errors keep their words.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from asyncio.subprocess import PIPE, Process
from typing import Any

from glowplug.types.errors import DeadlineExceeded, GlowplugError, Unavailable

LINE_BYTES = 1 << 20
_EXIT_S = 1.0


def take_stdout() -> int:
    """A descriptor for answers alone: what a library prints on stdout goes to stderr from now on."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def write_line(descriptor: int, answer: dict[str, Any]) -> None:
    """Answer, in one write. Raises BrokenPipeError."""
    os.write(descriptor, json.dumps(answer).encode() + b"\n")


class Asker:
    """One child that answers. What is still asked when it ends fails with Unavailable."""

    def __init__(self, name: str, process: Process) -> None:
        self._name = name
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, name: str, command: list[str], pass_fds: tuple[int, ...] = ()) -> Asker:
        """Start the child, in a session of its own: a Ctrl-C in a terminal is not for it.

        Raises Unavailable.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES, pass_fds=pass_fds, start_new_session=True
            )
        except OSError as error:
            raise Unavailable(
                f"The {name} does not start: {error.strerror}.", remedy="Is the machine out of memory?"
            ) from error
        return cls(name, process)

    @property
    def pid(self) -> int:
        """The child's."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not self._listener.done()

    async def ask(self, question: str, within_s: float, /, **arguments: Any) -> Any:
        """Ask, and wait for the answer.

        Raises what the child raised, DeadlineExceeded if no answer came (it may still be at it), or
        Unavailable if it ended.
        """
        if not self.is_alive:
            raise self._ended()
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            line = json.dumps({"number": number, "question": question, "arguments": arguments})
            assert self._process.stdin is not None  # noqa: S101 - asked for above
            self._process.stdin.write(line.encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # then its end is noticed as well
                await self._process.stdin.drain()
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"The {self._name} did not answer {question} within {within_s:g} s.",
                remedy="Look for NVRM lines in `dmesg`: a driver that hangs needs a reset of the GPU.",
                stage=f"gpu {question}",
                **arguments,
            ) from error
        finally:
            self._waiting.pop(number, None)

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self, deadline_s: float) -> None:
        """Say that there are no more questions, and wait for its end; kill it after ``deadline_s``."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        try:
            async with asyncio.timeout(deadline_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        with contextlib.suppress(TimeoutError):  # one that hangs in the kernel cannot be waited for
            async with asyncio.timeout(_EXIT_S):
                await self._process.wait()
                await self._listener

    async def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101
        try:
            while (line := await self._process.stdout.readline()).endswith(b"\n"):  # else it died in it
                message = json.loads(line)
                answer = self._waiting.get(message["number"])
                if answer is None or answer.done():
                    continue  # nobody waits for it any more
                if "error" in message:
                    answer.set_exception(GlowplugError.from_dict(message["error"]))
                else:
                    answer.set_result(message["value"])
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(self._ended())

    def _ended(self) -> Unavailable:
        return Unavailable(f"The {self._name} has ended.", remedy="It is started again; try once more.")
