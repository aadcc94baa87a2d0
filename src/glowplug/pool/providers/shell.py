"""Commands on a machine: by SSH, with the user's own keys and known hosts, or on this one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from glowplug.types.errors import DeadlineExceeded, Unavailable

_SSH_FAILED = 255
_CONNECT_S = 10
_MOST_OUTPUT = 1_000_000


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str


class Shell(Protocol):
    """Runs commands somewhere."""

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        """Run POSIX shell, with ``stdin`` to read: what nobody else is to see, who lists processes.

        Raises Unavailable when it cannot be reached, DeadlineExceeded.
        """
        ...


@dataclass(frozen=True)
class LocalShell:
    """This machine."""

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        """See :class:`Shell`."""
        return run_program(["sh", "-c", command], timeout_s, "this machine", stdin)


@dataclass(frozen=True)
class SshShell:
    """Another machine. Never asks anything, and trusts no host key that is not known already.

    ``host`` may be an alias of the user's SSH configuration, which then also says user, port and key.
    """

    host: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        """See :class:`Shell`."""
        ran = run_program([*self._ssh(), self.host, "--", command], timeout_s, self.host, stdin)
        if ran.code == _SSH_FAILED:
            raise Unavailable(
                f"{self.host} cannot be reached by SSH: {_last_line(ran.err)}",
                remedy=f"`ssh {self.host} true` must work without a question.",
                host=self.host,
            )
        return ran

    def _ssh(self) -> list[str]:
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={_CONNECT_S}"]
        if self.known_hosts is not None:
            options.append(f"UserKnownHostsFile={self.known_hosts}")
        command = ["ssh"]
        for option in options:
            command += ["-o", option]
        if self.user is not None:
            command += ["-l", self.user]
        if self.port is not None:
            command += ["-p", str(self.port)]
        if self.key is not None:
            command += ["-i", str(self.key), "-o", "IdentitiesOnly=yes"]
        return command


def run_program(
    command: Sequence[str],
    timeout_s: float,
    where: str,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> Ran:
    """Run a program here to its end, at most so long; ``where`` it works, for errors.

    Raises Unavailable if there is no such program, DeadlineExceeded: then all that it started was killed.
    """
    try:
        running = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as problem:
        raise Unavailable(
            f"{command[0]} cannot be started: {problem}.", remedy=f"Install {command[0]}."
        ) from problem
    with running:
        try:
            out, err = running.communicate(stdin.encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired as problem:
            # All of them: what the shell started would hold its pipes open.
            os.killpg(running.pid, signal.SIGKILL)
            raise DeadlineExceeded(
                f"{where} did not end `{command[-1][:80]}` within {timeout_s:g} s.",
                remedy="Look at the machine: a GPU that hangs holds up everything that asks it.",
                stage="shell",
            ) from problem
    return Ran(running.returncode, _text(out), _text(err))


def _text(data: bytes) -> str:
    return data[:_MOST_OUTPUT].decode(errors="replace")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it does not say why"])[-1]
