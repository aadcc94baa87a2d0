"""Who supervises a state directory, and whether it still does.

Two witnesses, so that neither a stale file nor a recycled pid can fool anybody: ``run/supervisor.json`` says
which process answers where, and an exclusive ``flock`` on the ``run`` folder, held for the supervisor's whole
life and dropped by the kernel when it dies, says that this is still true.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from glowplug.kernel.exclusive import lock_exclusively
from glowplug.types.errors import Conflict
from glowplug.types.paths import StateDir

MAX_RECORD_BYTES = 64 * 1024


class Role(StrEnum):
    """What a supervisor keeps alive besides the agent."""

    CONTROL = "control"
    NODE = "node"


class SupervisorRecord(BaseModel):
    """The content of ``run/supervisor.json``: ``host`` and ``port`` are those of the listening socket.

    ``role`` says what listens there: the control plane, or the gateway of a node of a cluster. ``beside``
    (HOST:PORT) is where something else listens too: the node's router, or a gateway beside the control plane.
    ``engine`` is where the cluster's machines come from, unless people join them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    pid: int
    host: str
    port: int
    started_at: float
    role: Role = Role.CONTROL
    beside: str | None = None
    engine: str | None = None

    @property
    def reached_at(self) -> str:
        """The address for who is on this machine: a wildcard is reached through loopback."""
        return _reached_at(self.host)

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the control plane."""
        return _url(self.host, self.port)

    @property
    def router_url(self) -> str | None:
        """Where one reaches the router of this node, if there is one."""
        if self.role is not Role.NODE or self.beside is None:
            return None
        host, _, port = self.beside.rpartition(":")
        return _url(host.strip("[]"), int(port))


def _reached_at(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def _url(host: str, port: int) -> str:
    reached_at = _reached_at(host)
    return f"http://[{reached_at}]:{port}" if ":" in reached_at else f"http://{reached_at}:{port}"


def read_record(state: StateDir) -> SupervisorRecord | None:
    """The record as it lies on disk, or None when there is none that can be read."""
    try:
        with state.supervisor.open("rb") as file:
            return SupervisorRecord.model_validate_json(file.read(MAX_RECORD_BYTES))
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValidationError):
        return None


def write_atomically(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` so that a reader sees the old content or the new, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def is_supervised(state: StateDir) -> bool:
    """Whether a living supervisor holds the state directory."""
    try:
        descriptor = os.open(state.run, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    finally:
        os.close(descriptor)
    return False


@contextmanager
def supervision(state: StateDir) -> Iterator[None]:
    """Hold the state directory. Raises Conflict when another supervisor does."""
    descriptor = os.open(state.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not lock_exclusively(descriptor):
            record = read_record(state)
            raise Conflict(
                f"Another supervisor already runs on {state.root}.",
                remedy="Use it, or stop it with `glowplug down` first.",
                state=str(state.root),
                pid=record.pid if record else None,
            )
        yield
    finally:
        os.close(descriptor)
