"""A control plane that can be killed like any process, and is started again on the socket that it had.

So while it is dead requests wait in the socket, as they do with its supervisor's. As a program it is a
control plane with a test's timings: ``python -m tests.control.killable_control --state DIR FD JSON``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from tests.control.conftest import QUICK, Control
from tests.control.control_process import Process, control_process

from glowplug.control.http_server import inherit_listener
from glowplug.control.server import serve
from glowplug.control.timings import Timings
from glowplug.types.paths import StateDir


@dataclass
class KillableControl(Control):
    """Running; :meth:`kill` it, then :meth:`start` the next one. ``deaths`` counts."""

    listener: socket.socket
    timings: Timings
    deaths: int = 0
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)
    _process: Process | None = None

    async def start(self) -> None:
        fd = self.listener.fileno()
        arguments = (str(fd), json.dumps(asdict(self.timings)))
        module = "tests.control.killable_control"
        self._process = await self._running.enter_async_context(
            control_process(self.state, *arguments, fds=(fd,), module=module)
        )

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.process.kill()
        self.deaths += 1
        await self.close()

    async def close(self) -> None:
        """As :meth:`kill`, of one that may be dead already."""
        await self._running.aclose()

    def log(self) -> str:
        """What the one that runs has said."""
        assert self._process is not None
        return "".join(self._process.stderr)


@asynccontextmanager
async def killable_control(state: StateDir, timings: Timings = QUICK) -> AsyncIterator[KillableControl]:
    """Serves until the end of the block, but for the moments in which it is dead."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.set_inheritable(True)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # Each request has a connection of its own: none is left over from one that was killed.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=120.0, limits=limits, trust_env=False) as client:
            control = KillableControl(url, client, state, listener, timings)
            await control.start()
            try:
                yield control
            finally:
                await control.close()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path)
    parser.add_argument("fd", type=int)
    parser.add_argument("timings")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    timings = Timings(**json.loads(options.timings))
    asyncio.run(serve(StateDir(options.state), inherit_listener(options.fd), timings=timings))


if __name__ == "__main__":
    main()
