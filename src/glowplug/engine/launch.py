"""Starting a supervisor process and hearing, through a pipe, whether it could take its place."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from glowplug.engine.child import dies_with_parent
from glowplug.engine.processes import wait_for_exit
from glowplug.engine.record import Role, SupervisorRecord
from glowplug.engine.supervisor import AGENT_COMMAND, CONTROL_COMMAND, GATEWAY_COMMAND, ROUTER_COMMAND
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.paths import StateDir

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
_REPORT_TIMEOUT_S = 20.0
_TAIL_LINES = 15
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Beside:
    """What else listens: on a node its router, beside a control plane the gateway of its own machine.

    ``listen`` is HOST:PORT. ``node``: the name of control's machine as a node, and where its gateway is
    reached.
    """

    listen: str
    node: tuple[str, str] | None = None


@dataclass(frozen=True)
class Commands:
    """What the supervisor runs. Tests put small stand-ins here.

    Beside the control plane there may be an ``engine`` that machines come from, called ``engine_name``, and
    the ``base`` that it stands on, where that is ours (the head of a Ray cluster).
    """

    agent: tuple[str, ...] = AGENT_COMMAND
    control: tuple[str, ...] = CONTROL_COMMAND
    gateway: tuple[str, ...] = GATEWAY_COMMAND
    router: tuple[str, ...] = ROUTER_COMMAND
    engine_name: str | None = None
    engine: tuple[str, ...] = ()
    base: tuple[str, ...] = ()


@contextmanager
def launched(
    state: StateDir,
    host: str | None,
    port: int | None,
    commands: Commands | None,
    *,
    foreground: bool,
    role: Role = Role.CONTROL,
    beside: Beside | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], SupervisorRecord]]:
    """A new supervisor and its record. Left by an exception, Ctrl-C included, it stops what it started."""
    chosen = commands or Commands()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with tempfile.TemporaryFile() as last_words, os.fdopen(read_end, "rb") as report:
        try:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "glowplug.engine.supervisor",
                    "--state", str(state.root),
                    "--host", host or DEFAULT_HOST,
                    "--port", str(DEFAULT_PORT if port is None else port),
                    "--report-fd", str(write_end),
                    "--agent-command", shlex.join(chosen.agent),
                    "--control-command", shlex.join(chosen.control),
                    "--gateway-command", shlex.join(chosen.gateway),
                    "--router-command", shlex.join(chosen.router),
                    "--role", role.value,
                    *(["--beside", beside.listen] if beside else []),
                    *(["--node", *beside.node] if beside and beside.node else []),
                    *_engine_options(chosen),
                    *(["--foreground"] if foreground else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=None if foreground else last_words,
                stderr=None if foreground else last_words,
                pass_fds=(write_end,),
                start_new_session=True,
                # Whoever watches a process in the foreground means all of it.
                preexec_fn=dies_with_parent() if foreground else None,
            )  # fmt: skip
        finally:
            os.close(write_end)
        try:
            yield process, _read_report(report, process, last_words)
        except BaseException:
            _stoplaunched(process)
            raise


def _engine_options(commands: Commands) -> list[str]:
    if commands.engine_name is None:
        return []
    options = ["--engine", commands.engine_name, "--engine-command", shlex.join(commands.engine)]
    return [*options, "--base-command", shlex.join(commands.base)] if commands.base else options


def _stoplaunched(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    if not wait_for_exit(process.pid, 20.0):
        process.kill()
    process.wait()


def _read_report(
    report: IO[bytes], process: subprocess.Popen[bytes], last_words: IO[bytes]
) -> SupervisorRecord:
    readable, _, _ = select.select([report], [], [], _REPORT_TIMEOUT_S)
    line = report.readline() if readable else b""
    message = json.loads(line) if line else {}
    if "record" in message:
        return SupervisorRecord.model_validate(message["record"])
    if "error" in message:
        raise GlowplugError.from_dict(message["error"])
    last_words.seek(0)
    raise Unavailable(
        f"The supervisor ended before it was ready (exit code {process.poll()}).",
        remedy="Its last words are above; `glowplug doctor` checks the machine.",
        tail=last_words.read().decode(errors="replace").splitlines()[-_TAIL_LINES:],
    )


@contextmanager
def forwarding_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to ``process`` instead of dying of them; a closed terminal is a SIGTERM."""

    def forward(number: int, frame: object) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
