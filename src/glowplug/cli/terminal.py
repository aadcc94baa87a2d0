"""``exec`` and ``shell``: a process inside a running replica, with this terminal."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from glowplug.cli.exec_socket import ExecRequest, run_remotely
from glowplug.cli.options import TargetArgument, session_of
from glowplug.cli.session import Session
from glowplug.cli.targets import find_replica


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("exec", context_settings={"allow_interspersed_args": False})(execute)
    app.command()(shell)


def execute(
    context: typer.Context,
    target: TargetArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run inside.")],
    has_terminal: Annotated[
        bool, typer.Option("--tty", "-t", help="Give it a terminal, for interactive programs.")
    ] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Do not pass on our input.")] = False,
) -> None:
    """Run a command in a running replica; its exit code becomes ours."""
    session = session_of(context)
    # The parser leaves a "--" that comes after the target in place.
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise typer.BadParameter("There is no command to run.")
    stdin = None if no_stdin else input_descriptor()
    raise typer.Exit(_run_in(session, target, ExecRequest(command, has_terminal, stdin)))


def shell(
    context: typer.Context,
    target: TargetArgument,
    program: Annotated[str, typer.Option("--shell", help="Which shell.")] = "/bin/sh",
) -> None:
    """Open a shell in a running replica."""
    session = session_of(context)
    stdin = input_descriptor()
    is_interactive = stdin is not None and os.isatty(stdin)
    raise typer.Exit(_run_in(session, target, ExecRequest([program], is_interactive, stdin)))


def _run_in(session: Session, target: str, request: ExecRequest) -> int:
    with session.client() as client:
        replica = find_replica(client.replicas(), target, running=True)
        return run_remotely(client.exec_url(replica.id, request.query()), client.headers, request)


def input_descriptor() -> int | None:
    """Our standard input, None when it is closed."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        return None
