"""What a replica is asked before it serves: whether it is ready, to be a copy of its own, the canary."""

from __future__ import annotations

import asyncio
import subprocess

import aiohttp

from glowplug.node import failures
from glowplug.node.container import Container
from glowplug.node.replica import Replica
from glowplug.node.talk import ReplicaTalk
from glowplug.snapshot import canary
from glowplug.types.errors import ReplicaFailed, SnapshotInvalid
from glowplug.types.replica import StartReplica
from glowplug.types.spec import HttpCall

CANARY_TIMEOUT_S = 60.0
ACTIVATE_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 5.0
_FIRST_PROBE_S = 0.02
_SLOWEST_PROBE_S = 0.25


async def wait_ready(replica: Replica, talk: ReplicaTalk, timeout_s: float) -> None:
    """Ask the ready call until it succeeds. Raises DeadlineExceeded."""
    server, container = replica.request.server, replica.container
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s, last = _FIRST_PROBE_S, "it was never asked"
    while True:
        try:
            answer = await talk.ask(server.ready, _PROBE_TIMEOUT_S)
            if answer.is_success:
                return
            last = f"the last answer was {answer.status}"
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            last = f"the last try failed ({failures.in_words(error)})"
        if loop.time() > deadline:
            listening = await asyncio.to_thread(_what_listens, container)
            raise failures.never_ready(replica.id, server, container.folder.log, last, listening)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _SLOWEST_PROBE_S)


async def activate(talk: ReplicaTalk, request: StartReplica, timeout_s: float, *, restored: bool) -> None:
    """Tell our runner to become a copy of its own. Raises ReplicaFailed with the user's traceback."""
    body = {
        "env": {"HOSTNAME": request.replica_id, **request.server.env, **request.secrets},
        "restored": restored,
        "hostname": request.replica_id,
    }
    call = HttpCall(method="POST", path="/.glowplug/activate", json_body=body)
    answer = await talk.call("enter(snap=False)", call, timeout_s)
    if not answer.is_success:
        raise ReplicaFailed(
            f"{request.replica_id} failed in enter(snap=False): {answer.text()}",
            remedy="Fix the method; it runs in every copy before it answers anybody.",
            replica_id=request.replica_id,
        )


async def ask_canary(talk: ReplicaTalk, expected: canary.CanaryAnswer) -> None:
    """Raises SnapshotInvalid when the copy answers otherwise than the captured replica did."""
    call = expected.request
    answer = await talk.call("canary", call, CANARY_TIMEOUT_S)
    difference = canary.compare(expected, answer.status, answer.body)
    if difference is not None:
        raise SnapshotInvalid(
            f"The canary {call.method} {call.path} was answered differently: {difference}.",
            remedy="A cold start answers instead; after three failures the snapshot is quarantined.",
        )


def _what_listens(container: Container) -> str:
    """What its own kernel says, if its image has `cat`; nothing otherwise."""
    argv = container.exec_argv(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return failures.listening_ports(done.stdout) if done.stdout else ""
