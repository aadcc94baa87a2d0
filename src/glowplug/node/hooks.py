"""Hooks around a snapshot: those a deployment declares (an HTTP call, a signal, a command inside the
container), and those that processes inside registered with ``glowplug.hooks``, which are found by their port.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Literal

import aiohttp

from glowplug.hooks import FIRST_PORT, PORTS
from glowplug.node.container import Container
from glowplug.node.talk import ReplicaTalk
from glowplug.types.errors import DeadlineExceeded, ReplicaFailed
from glowplug.types.replica import Endpoint
from glowplug.types.spec import Hook, HttpCall, ServerSpec

HOOK_TIMEOUT_S = 60.0
_FIND_TIMEOUT_S = 10.0
_PATH = "/.glowplug/hooks"

Moment = Literal["before_snapshot", "after_restore"]


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


def restore_timeout_s(server: ServerSpec) -> float:
    """How long one process may take after a restore: many GB of weights take as long as they took to load."""
    return server.startup_timeout_s if server.snapshot.weights == "stream" else HOOK_TIMEOUT_S


async def find_hook_ports(endpoint: Endpoint) -> list[int]:
    """The ports, lowest first, at which processes of a replica run the hooks that they registered."""
    ports = range(FIRST_PORT, FIRST_PORT + PORTS)
    are_ours = await asyncio.gather(*(_is_hook_port(_at(endpoint, port)) for port in ports))
    return [port for port, is_ours in zip(ports, are_ours, strict=True) if is_ours]


async def run_registered(
    replica_id: str, endpoint: Endpoint, ports: list[int], moment: Moment, timeout_s: float = HOOK_TIMEOUT_S
) -> None:
    """Have every process run what it registered, one after the other, each within ``timeout_s``.

    Children first before a snapshot, parents first after a restore. Raises ReplicaFailed with the traceback,
    or DeadlineExceeded.
    """
    for port in reversed(ports) if moment == "before_snapshot" else ports:
        talk = ReplicaTalk(_at(endpoint, port))
        try:
            call = HttpCall(method="POST", path=f"{_PATH}/{moment}")
            answer = await talk.call(f"glowplug.hooks.{moment}", call, timeout_s)
        finally:
            await talk.close()
        if not answer.is_success:
            raise _failed(replica_id, f"glowplug.hooks.{moment}", answer.text())


async def _is_hook_port(endpoint: Endpoint) -> bool:
    talk = ReplicaTalk(endpoint)
    try:
        answer = await talk.ask(HttpCall(path=_PATH), _FIND_TIMEOUT_S)
        content = json.loads(answer.body)
    except (OSError, TimeoutError, aiohttp.ClientError, ValueError):
        return False  # nobody listens there, or something of the server's own
    finally:
        await talk.close()
    return isinstance(content, dict) and "glowplug_hooks" in content


def _at(endpoint: Endpoint, port: int) -> Endpoint:
    return endpoint.model_copy(update={"port": port})


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
