"""Starting and ending Glowplug on a Ray cluster, from the machine of its control plane."""

from __future__ import annotations

import sys
import time

from glowplug.engine import embedded
from glowplug.engine.launch import Commands
from glowplug.engine.ray.base import make_base
from glowplug.engine.ray.head import check_installed
from glowplug.engine.ray.settings import RaySettings
from glowplug.engine.record import is_supervised, read_record
from glowplug.engine.rotating_log import tail
from glowplug.engine.status import EngineStatus, read_status
from glowplug.types.clock import SystemClock
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError, NotFound
from glowplug.types.paths import StateDir

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 200.0
_POLL_S = 0.2
_TAIL_LINES = 15


def commands(settings: RaySettings) -> Commands:
    """What the supervisor runs beside the control plane."""
    module = (sys.executable, "-m")
    base = (*module, "glowplug.engine.ray.head") if settings.starts_head else ()
    return Commands(engine_name="ray", engine=(*module, "glowplug.engine.ray"), base=base)


def prepare(state: StateDir, settings: RaySettings) -> None:
    """Write down what is to run. Raises Conflict when something else runs, SystemUnfit without Ray."""
    check_installed()
    if is_supervised(state):
        _check_is_the_same(state, settings)
        return
    state.create()
    if settings.starts_head:
        make_base(state, settings, SystemClock())
    settings.save(state)
    state.engine_status.unlink(missing_ok=True)


def up(
    state: StateDir, settings: RaySettings, host: str, port: int | None, timeout_s: float = START_TIMEOUT_S
) -> tuple[embedded.Address, EngineStatus]:
    """Make sure that it runs; returns where, and what machines there are, once Ray has answered.

    Raises what :func:`prepare` and :func:`embedded.up` do, and DeadlineExceeded when Ray does not answer;
    what was started is then stopped again.
    """
    deadline = time.monotonic() + timeout_s
    did_run = is_supervised(state)
    prepare(state, settings)
    address = embedded.up(state, host, port, timeout_s=timeout_s, commands=commands(settings))
    try:
        return address, _await_engine(state, deadline, timeout_s)
    except BaseException:
        if not did_run:
            embedded.down(state)
        raise


def down(state: StateDir, timeout_s: float = STOP_TIMEOUT_S) -> tuple[bool, dict[str, str]]:
    """End everything that was begun here, agents on other machines too.

    Returns whether anything ran, and which machines kept their agents, with the reasons. An existing Ray
    cluster is left as it is, but for our actors.
    """
    did_run = embedded.down(state, timeout_s=timeout_s)
    state.identity.engine.engine_base.unlink(missing_ok=True)  # nobody else may join what is no more
    told = read_status(state)
    if not did_run or told is None:
        return did_run, {}
    if told.error is not None:
        return did_run, {"all machines": str(GlowplugError.from_dict(told.error))}
    if not told.is_over:
        return did_run, {"all machines": "the engine ended before it had told them"}
    return did_run, dict(told.left)


def _check_is_the_same(state: StateDir, settings: RaySettings) -> None:
    record = read_record(state)
    try:
        is_same = record is not None and record.engine == "ray" and RaySettings.load(state) == settings
    except NotFound:
        is_same = False
    if not is_same:
        raise Conflict(
            f"Glowplug already runs on {state.root}, without Ray or with another one.",
            remedy="Stop it with `glowplug down` first; deployments and snapshots are kept.",
        )


def _await_engine(state: StateDir, deadline: float, timeout_s: float) -> EngineStatus:
    while True:
        told = read_status(state)
        if told is not None and told.error is None:
            return told
        if time.monotonic() >= deadline:
            logs = (state.logs / "base.log", state.logs / "engine.log")
            raise DeadlineExceeded(
                f"Ray did not answer within {timeout_s:g} s.",
                remedy=f"See {state.logs / 'engine.log'}. An existing Ray must have a node on this machine.",
                stage="start of the engine",
                reason=None if told is None else GlowplugError.from_dict(told.error or {}).message,
                tail=[line for log in logs for line in tail(log, _TAIL_LINES)],
            )
        time.sleep(_POLL_S)
