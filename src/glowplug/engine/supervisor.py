"""The supervisor's entry point: ``python -m glowplug.engine.supervisor --state DIR --host H --port P``.

Puts the pieces together in the one order that is safe: hold the state directory, open the listening socket,
publish ``run/supervisor.json``, tell whoever started us (one JSON line on ``--report-fd``: ``{"record"}`` or
``{"error"}``), and only then supervise.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import resource
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from glowplug.engine.child import Child, become_subreaper
from glowplug.engine.exits import ExitNotes
from glowplug.engine.listener import listen
from glowplug.engine.record import Role, SupervisorRecord, supervision, write_atomically
from glowplug.engine.rotating_log import MAX_FILE_BYTES, MAX_FILES, RotatingLog
from glowplug.engine.supervisor_loop import Supervisor
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError, SystemUnfit
from glowplug.types.paths import DATABASE_URL_VARIABLE, StateDir

AGENT_COMMAND = (sys.executable, "-m", "glowplug.node")
CONTROL_COMMAND = (sys.executable, "-m", "glowplug.control")
GATEWAY_COMMAND = (sys.executable, "-m", "glowplug.node.gateway")
ROUTER_COMMAND = (sys.executable, "-m", "glowplug.control.edge")
# How to write to the database is the control plane's business, and nobody else's.
_DATABASE_VARIABLES = frozenset({DATABASE_URL_VARIABLE, "PGPASSWORD", "PGPASSFILE"})
# With Ray's token anybody runs anything on all its machines: it is for the engine only.
_ENGINE_PREFIX = "RAY_"
_WANTED_OPEN_FILES = 65_536
_MOST_OPEN_FILES = 1_048_576  # programs that close "all" descriptors take long with an unlimited number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    options = _parse(arguments)
    state = StateDir(Path(options.state).absolute())
    try:
        _prepare(state)
        log = _logger(state, echo=options.foreground)
        _supervise(state, options, log, SystemClock())
    except GlowplugError as error:
        _report(options.report_fd, {"error": error.to_dict()})
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="glowplug.engine.supervisor", description=__doc__)
    parser.add_argument("--state", required=True, help="the state directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 takes a free one")
    parser.add_argument("--foreground", action="store_true", help="copy all logs to stderr")
    parser.add_argument("--report-fd", type=int, help="descriptor for the one-line start report")
    parser.add_argument("--agent-command", default=shlex.join(AGENT_COMMAND), help="run instead of the agent")
    parser.add_argument("--control-command", default=shlex.join(CONTROL_COMMAND), help="instead of control")
    parser.add_argument("--gateway-command", default=shlex.join(GATEWAY_COMMAND), help="instead of it")
    parser.add_argument("--router-command", default=shlex.join(ROUTER_COMMAND), help="instead of it")
    parser.add_argument(
        "--beside", metavar="HOST:PORT", help="where a node's router listens, or a gateway beside control"
    )
    parser.add_argument(
        "--node", nargs=2, metavar=("NAME", "HOST:PORT"), help="what control's machine is as a node"
    )
    parser.add_argument("--engine", help="the name of the engine that machines come from")
    parser.add_argument("--engine-command", default="", help="run it, beside the control plane")
    parser.add_argument("--base-command", default="", help="run what the engine stands on")
    parser.add_argument("--role", type=Role, choices=list(Role), default=Role.CONTROL, help="what listens")
    return parser.parse_args(arguments)


def _prepare(state: StateDir) -> None:
    try:
        state.create()
    except OSError as error:
        raise SystemUnfit(
            f"The state directory {state.root} cannot be made: {error.strerror}.",
            remedy="Run as root, or choose another folder with --state or GLOWPLUG_STATE.",
            path=str(state.root),
        ) from error


def _logger(state: StateDir, echo: bool) -> logging.Logger:
    log = logging.getLogger("glowplug.supervisor")
    log.setLevel(logging.INFO)
    formatter = logging.Formatter("%(asctime)s %(levelname)s supervisor: %(message)s")
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(
            state.logs / "supervisor.log", maxBytes=MAX_FILE_BYTES, backupCount=MAX_FILES - 1
        )
    ]
    if echo:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(formatter)
        log.addHandler(handler)
    return log


def _supervise(state: StateDir, options: argparse.Namespace, log: logging.Logger, clock: Clock) -> None:
    with ExitStack() as owned:
        owned.enter_context(supervision(state))
        listener = owned.enter_context(listen(options.host, options.port))
        beside = None if options.beside is None else owned.enter_context(_listen(options.beside))
        record = _publish(state, listener, beside, clock, options)
        owned.callback(state.supervisor.unlink, missing_ok=True)
        _raise_open_files_limit()
        become_subreaper()
        of_the_engine = frozenset(name for name in os.environ if name.startswith(_ENGINE_PREFIX))
        agent_log = owned.enter_context(RotatingLog(state.logs / "agent.log"))
        agent = Child(
            "agent",
            [*shlex.split(options.agent_command), "--state", str(state.root)],
            agent_log,
            clock,
            kept_from_it=_DATABASE_VARIABLES | of_the_engine,
        )
        fronts = _fronts(state, options, listener, beside, of_the_engine, clock, owned)
        sources = {
            name: Child(
                name,
                [*shlex.split(command), "--state", str(state.root)],
                owned.enter_context(RotatingLog(state.logs / f"{name}.log")),
                clock,
                kept_from_it=_DATABASE_VARIABLES,
            )
            for name, command in (("engine", options.engine_command), ("base", options.base_command))
            if command
        }
        log.info("listening on %s:%d as pid %d", record.host, record.port, record.pid)
        _report(options.report_fd, {"record": record.model_dump()})
        Supervisor(
            fronts=fronts,
            agent=agent,
            engine=sources.get("engine"),
            base=sources.get("base"),
            listeners=[listener] if beside is None else [listener, beside],
            notes=ExitNotes(state.exits, clock),
            clock=clock,
            log=log,
            echo=options.foreground,
        ).run()


def _fronts(
    state: StateDir,
    options: argparse.Namespace,
    listener: socket.socket,
    beside: socket.socket | None,
    of_the_engine: frozenset[str],
    clock: Clock,
    owned: ExitStack,
) -> list[Child]:
    """What serves in front of the agent, in the order in which it ends: who has requests to finish first."""

    def front(name: str, command: str, served: socket.socket, *arguments: str) -> Child:
        return Child(
            name,
            [*shlex.split(command), "--state", str(state.root), "--fd", str(served.fileno()), *arguments],
            owned.enter_context(RotatingLog(state.logs / f"{name}.log")),
            clock,
            pass_fds=(served.fileno(),),
            kept_from_it=of_the_engine if name == "control" else _DATABASE_VARIABLES | of_the_engine,
        )

    if options.role is Role.NODE:
        gateway = front("gateway", options.gateway_command, listener)
        return [gateway] if beside is None else [front("router", options.router_command, beside), gateway]
    node = () if options.node is None else ("--node", *options.node)
    control = front("control", options.control_command, listener, *node)
    if beside is None:
        return [control]
    return [control, front("gateway", options.gateway_command, beside, "--await-certificate")]


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return listen(host.strip("[]"), int(port))


def _publish(
    state: StateDir,
    listener: socket.socket,
    beside: socket.socket | None,
    clock: Clock,
    options: argparse.Namespace,
) -> SupervisorRecord:
    host, port = listener.getsockname()[:2]
    record = SupervisorRecord(
        pid=os.getpid(),
        host=host,
        port=port,
        started_at=clock.wall(),
        role=options.role,
        beside=None if beside is None else "{}:{}".format(*beside.getsockname()[:2]),
        engine=options.engine,
    )
    write_atomically(state.supervisor, record.model_dump_json())
    return record


def _raise_open_files_limit() -> None:
    # A thousand held requests are a thousand sockets, and a sandbox keeps files open for its application:
    # more than the usual soft limit of 1024. Root may raise the hard limit, others take what there is.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    for limit in (max(known, _WANTED_OPEN_FILES), known):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, known)))
            return


def _report(descriptor: int | None, message: dict[str, object]) -> None:
    if descriptor is None:
        return
    with os.fdopen(descriptor, "w") as pipe:
        pipe.write(json.dumps(message, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
