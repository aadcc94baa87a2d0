"""From what went wrong inside a sandbox to an error its user can act on."""

from __future__ import annotations

import errno
from pathlib import Path

from glowplug.node.logs import last_words
from glowplug.types.errors import (
    DeadlineExceeded,
    GlowplugError,
    ReplicaFailed,
    ResourceExhausted,
    RuntimeFailed,
)
from glowplug.types.replica import Stage
from glowplug.types.spec import ServerSpec

_GIB = 1 << 30
_LISTENING = "0A"
_LOOPBACK = ("0100007F", "00000000000000000000000001000000")


def exited(replica_id: str, server: ServerSpec, log: Path, code: int | None, oom_kills: int) -> ReplicaFailed:
    """The application ended although nobody asked it to."""
    words = last_words(log)
    if oom_kills:
        return ReplicaFailed(
            f"{replica_id} ran out of memory: its limit is {server.resources.memory_bytes / _GIB:.2g} GiB.",
            remedy=f"Give {server.name} more with memory=, or make it need less.",
            replica_id=replica_id,
            exit_code=code,
            log=words,
        )
    how = "with an unknown exit code" if code is None else f"with exit code {code}"
    if code is not None and code > 128:
        how += f" (signal {code - 128})"
    return ReplicaFailed(
        f"{replica_id} ended {how}; it is meant to keep running and to listen on port {server.port}.",
        remedy=f"Its last words are in the details; all of them: `glowplug logs {replica_id}`.",
        replica_id=replica_id,
        exit_code=code,
        log=words,
    )


def from_system(what: str, error: OSError) -> GlowplugError:
    """The system refused something of ours: a full disk is named as such."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            f"{what}: the disk is full.",
            remedy="Free some space (`glowplug snapshot rm ID`), or put GLOWPLUG_STATE on a larger disk.",
            file=str(error.filename or ""),
        )
    return GlowplugError(
        f"{what}: {error}.",
        remedy="The agent's log and `dmesg` may say more.",
        file=str(error.filename or ""),
    )


def never_ready(
    replica_id: str, server: ServerSpec, log: Path, last: str, listening: str
) -> DeadlineExceeded:
    """It runs, but did not answer its ready call in time."""
    return DeadlineExceeded(
        f"{replica_id} did not answer {server.ready.method} {server.ready.path} on port {server.port} within "
        f"{server.startup_timeout_s:g} s: {last}. {listening}".strip(),
        remedy="Make the server listen on 0.0.0.0 and that port (or set port= and ready= to what it uses), "
        f"or give it more time with startup_timeout_s=. Its log: `glowplug logs {replica_id}`.",
        replica_id=replica_id,
        stage=Stage.HOST_INIT.value,
        log=last_words(log),
    )


def could_not_start(replica_id: str, server: ServerSpec, error: GlowplugError) -> GlowplugError:
    """The runtime refused: the user's mistake when the command does not exist, ours otherwise."""
    if isinstance(error, RuntimeFailed) and "executable" in error.message:
        return ReplicaFailed(
            f"{replica_id} could not start: {server.command[0]!r} is not in its image.",
            remedy="Check the command and the image: the program must be on its PATH, or an absolute path.",
            replica_id=replica_id,
            reason=error.message,
        )
    return error


def listening_ports(proc_net_tcp: str) -> str:
    """A sentence on what the container listens on, from its /proc/net/tcp and tcp6 (proc(5))."""
    found = set()
    for line in proc_net_tcp.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTENING:
            address, _, port = fields[1].rpartition(":")
            where = "127.0.0.1 only" if address in _LOOPBACK else "all addresses"
            found.add(f"{int(port, 16)} ({where})")
    return f"It listens on {', '.join(sorted(found))}." if found else "It listens on no TCP port."


def in_words(error: Exception) -> str:
    """What an exception says, or what it is when it says nothing (as TimeoutError does)."""
    return (error.message if isinstance(error, GlowplugError) else str(error)) or type(error).__name__
