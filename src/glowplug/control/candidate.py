"""Which control plane this is: the only one of its state directory, by an id that is kept there.

So a control plane that was killed is followed by the next of its directory at once: nobody else can have the
id, and the lock says that whoever had it before has ended.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from glowplug.control.lease import Candidate
from glowplug.kernel.exclusive import lock_exclusively
from glowplug.types.errors import Conflict
from glowplug.types.paths import StateDir

PREDECESSOR_S = 20.0
"""One that was told to end finishes its requests first: 10 s, and what it has to write down."""
_ANY_ADDRESS = {"0.0.0.0", "::", ""}


@asynccontextmanager
async def only_control(state: StateDir, listener: socket.socket) -> AsyncIterator[Candidate]:
    """Be the only one of ``state`` inside the block. Raises Conflict when another does not end in time."""
    descriptor = os.open(state.control_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _lock(descriptor, state)
        yield Candidate(_id_of(state.control_id), _address_of(listener))
    finally:
        os.close(descriptor)


async def _lock(descriptor: int, state: StateDir) -> None:
    deadline_s = asyncio.get_running_loop().time() + PREDECESSOR_S
    while not await asyncio.to_thread(lock_exclusively, descriptor):
        if asyncio.get_running_loop().time() >= deadline_s:
            raise Conflict(
                f"Another control plane runs on {state.root}, and does not end.",
                remedy="`glowplug down` stops it.",
            )


def _id_of(path: Path) -> str:
    """The id in ``path``, made on first use. Only whoever holds the lock comes here."""
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if found.isalnum() and len(found) <= 64:
        return found
    made = secrets.token_hex(16)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(made + "\n")
    temporary.replace(path)
    return made


def _address_of(listener: socket.socket) -> str:
    """Where others reach us: by name, where we listen on all addresses."""
    host, port = listener.getsockname()[:2]
    if host in _ANY_ADDRESS:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
