"""Hooks of plain commands around a snapshot: an HTTP call, a signal, or a command inside the container."""

from __future__ import annotations

import asyncio
import subprocess

from glowplug.node.container import Container
from glowplug.node.talk import ReplicaTalk
from glowplug.types.errors import DeadlineExceeded, ReplicaFailed
from glowplug.types.spec import Hook

HOOK_TIMEOUT_S = 60.0


async def run_hook(hook: Hook, container: Container, talk: ReplicaTalk) -> None:
    """Do what the hook says. Raises ReplicaFailed or DeadlineExceeded.

    A command has ended when this returns: a checkpoint taken while one runs cannot be restored.
    """
    if hook.http is not None:
        answer = await talk.call("hook", hook.http, HOOK_TIMEOUT_S)
        if not answer.is_success:
            raise _failed(container.id, f"{hook.http.method} {hook.http.path}", f"status {answer.status}")
    elif hook.signal is not None:
        await asyncio.to_thread(container.signal, hook.signal)
    elif hook.command is not None:
        await asyncio.to_thread(_run, container.id, hook.command, container.exec_argv(hook.command))


def _run(replica_id: str, command: list[str], argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=HOOK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(
            f"The hook {' '.join(command)!r} of {replica_id} did not end within {HOOK_TIMEOUT_S:g} s.",
            replica_id=replica_id,
        ) from None
    if done.returncode != 0:
        raise _failed(replica_id, " ".join(command), f"exit code {done.returncode}: {done.stderr[-500:]}")


def _failed(replica_id: str, what: str, how: str) -> ReplicaFailed:
    return ReplicaFailed(
        f"The hook {what!r} of {replica_id} failed: {how}", remedy="Fix the hook.", replica_id=replica_id
    )
