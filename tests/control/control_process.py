"""The control plane, or a router of a node, as a process of its own, which tests may signal and kill."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.control.conftest import eventually

from glowplug.types.paths import StateDir

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Process:
    """A running process that serves."""

    pid: int
    port: int
    process: asyncio.subprocess.Process
    stderr: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def limits(self) -> str:
        return Path(f"/proc/{self.pid}/limits").read_text()

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES


@asynccontextmanager
async def control_process(
    state: StateDir, *arguments: str, fds: tuple[int, ...] = (), module: str = "glowplug.control"
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "--state", str(state.root), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, pass_fds=fds,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stderr is not None
    reading = asyncio.create_task(_read(process.stderr, lines))
    try:
        found = await eventually(
            lambda: re.search(r"serving on \S+ port (\d+)", "".join(lines)) or process.returncode is not None,
            "a start",
        )
        port = int(found.group(1)) if isinstance(found, re.Match) else 0
        yield Process(process.pid, port, process, lines)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        lines.append(line.decode())
