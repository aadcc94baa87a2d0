"""``python -m glowplug.engine.ray.starter --state DIR``: joins and starts an agent, as ``cluster join`` does.

A process of its own, because what it leaves running must not be the child of an actor: Ray ends those. And
Ray gives its workers a low priority, tells the kernel to kill them first, and blocks SIGINT in them: all that
would be inherited by agents and replicas.
It reads its order from stdin, as every listing of processes shows arguments, and answers with a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.engine import embedded
from glowplug.engine import join as joining
from glowplug.engine.launch import Beside
from glowplug.engine.record import Role, is_supervised
from glowplug.types.cluster import MembershipRecord
from glowplug.types.errors import GlowplugError, NotFound
from glowplug.types.paths import StateDir

_ALL_ADDRESSES = "0.0.0.0"
_MAX_ORDER_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Joining:
    """The actor that orders it may be of an older version, that knows no ``serve``."""

    control_url: str
    token: str
    name: str
    advertise: str
    gateway_port: int
    labels: dict[str, str]
    serve: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; the answer is on stdout."""
    parser = argparse.ArgumentParser(prog="glowplug.engine.ray.starter", description=__doc__)
    parser.add_argument("--state", required=True, help="the state directory")
    parser.add_argument("--timeout", type=float, default=embedded.START_TIMEOUT_S)
    options = parser.parse_args(arguments)
    _be_nobodys_worker()
    try:
        order: dict[str, Any] = json.loads(sys.stdin.read(_MAX_ORDER_BYTES) or "{}")
        record = _started(StateDir(Path(options.state)), order, options.timeout)
        answer: dict[str, Any] = {"node": record.name}
    except GlowplugError as error:
        answer = {"error": error.to_dict()}
    sys.stdout.write(json.dumps(answer, default=str) + "\n")
    return 1 if "error" in answer else 0


def _started(state: StateDir, order: dict[str, Any], timeout_s: float) -> MembershipRecord:
    if order:
        _join(state, _Joining(**order))
    record = joining.joined(state)
    where = (state, record.listen_host, record.listen_port)
    router = Beside(record.serve) if record.serve else None
    embedded.up(*where, role=Role.NODE, beside=router, timeout_s=timeout_s)
    return record


def _join(state: StateDir, order: _Joining) -> None:
    if is_supervised(state):
        embedded.down(state, keep_replicas=True)
    state.create()
    port = order.gateway_port or _port_of_before(state) or _free_port()
    listen, serve = f"{_ALL_ADDRESSES}:{port}", order.serve or joining.DEFAULT_SERVE
    wanted = joining.Wanted(order.name, listen, order.advertise, order.labels, serve)
    joining.join(state, order.control_url, order.token, wanted)


def _port_of_before(state: StateDir) -> int | None:
    try:
        return joining.joined(state).listen_port
    except NotFound:
        return None


def _free_port() -> int:
    with socket.create_server((_ALL_ADDRESSES, 0)) as listener:
        return int(listener.getsockname()[1])


def _be_nobodys_worker() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Both need root, as an agent does; without, the agent itself says what it lacks.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")


if __name__ == "__main__":
    sys.exit(main())
