"""The program inside the container of every ``@app.cls`` and ``@app.function``.

``python3 -m glowplug.sdk.runner --module /app/FILE.py --target NAME --kind cls|function --port 8000``

It listens at once (and says 503), loads the user's code, runs ``enter(snap=True)``, and from then on answers
``GET /.glowplug/ready`` with 200: the point at which the agent may capture its memory. If loading fails it
prints the traceback and exits with 1. On SIGTERM it finishes the requests being answered, runs ``exit``
methods and exits with 0. One process; standard library only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from glowplug.sdk.lifecycle import Moment
from glowplug.sdk.runner_activation import Phases
from glowplug.sdk.runner_http import Server
from glowplug.sdk.runner_main_thread import MainThread
from glowplug.sdk.runner_routes import Service, handler_for
from glowplug.sdk.runner_target import Target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code."""
    options = _parser().parse_args(arguments)
    # What the user prints reaches the log line by line, not when a buffer is full.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main_thread = MainThread(options.lifecycle_timeout_s)
    service = Service(main_thread)
    try:
        server = Server((options.host, options.port), handler_for(service))
    except OSError as error:
        print(f"glowplug: cannot listen on port {options.port}: {error.strerror}", file=sys.stderr)
        return 1
    _stop_on_signals(main_thread, service)
    server.start()
    try:
        target = Target.load(options.module, options.target, options.kind)
        target.run_hooks(Moment.ENTER_BEFORE_SNAPSHOT)
    except Exception:  # noqa: BLE001 - the user's own code may raise anything; its traceback is what helps
        traceback.print_exc()
        _exit_now(1)
    service.set_ready(target, Phases(target))
    main_thread.serve()
    return _shut_down(server, target, options.drain_timeout_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m glowplug.sdk.runner", allow_abbrev=False)
    parser.add_argument("--module", type=Path, required=True, help="the user's Python file")
    parser.add_argument("--target", required=True, help="the class or function in it")
    parser.add_argument("--kind", choices=("cls", "function"), required=True)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--drain-timeout-s", type=float, default=600.0, help="wait for answers on SIGTERM")
    parser.add_argument(
        "--lifecycle-timeout-s", type=float, default=3600.0, help="wait for enter(snap=False)"
    )
    return parser


def _stop_on_signals(main_thread: MainThread, service: Service) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        main_thread.stop()
        if service.target is None:
            # Still loading: there is nothing to finish, and loading may take minutes.
            raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _shut_down(server: Server, target: Target, drain_timeout_s: float) -> int:
    if not server.drain(drain_timeout_s):
        print(f"glowplug: requests unanswered after {drain_timeout_s:g} s are cut off", file=sys.stderr)
    try:
        target.run_hooks(Moment.EXIT)
    except Exception:  # noqa: BLE001 - the user's own code; the replica stops all the same
        traceback.print_exc()
    return 0


def _exit_now(code: int) -> None:
    """Exit though threads of the user's may still run: a replica that failed must be seen to have failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
