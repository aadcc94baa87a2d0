"""gVisor's ``runsc`` behind the :class:`~glowplug.runtime.port.Runtime` port.

What is peculiar to it, all measured (``docs/runtime.md``):

* Flags differ between releases; they are chosen from what the installed binary says it knows.
* On kernels where ``/proc/sys/net/core/rmem_default`` shows in every network namespace (6.18 does), runsc
  20240729 mistakes a private namespace for the host's and refuses to start; it is hidden in a private mount
  namespace around the commands that look (``create``, ``start``, ``restore``).
* stdout and stderr go to a file opened with O_APPEND: no process of ours stands between the application and
  its log, so nothing breaks when the agent dies. (Without O_APPEND the sandbox writes from offset 0.)
* ``delete`` waits for the sandbox and its gofer to be *reaped*, up to two minutes: somebody must be their
  subreaper (the supervisor is).
* Its error texts end in pages of Go panics; the first line that says something is kept.
* A full disk makes ``checkpoint`` fail with a nil pointer dereference: the disk itself tells.
* Killing ``runsc exec`` does not end what it runs inside: that needs ``runsc kill --pid``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path

from glowplug.runtime.bundle import oci_config, write_bundle
from glowplug.runtime.command import check_room, find_program, kill_processes, run_to_end
from glowplug.runtime.port import Sandbox
from glowplug.types.errors import RuntimeFailed, SystemUnfit
from glowplug.types.identity import RuntimeIdentity

_HIDING_SYSCTL = (
    "unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro,size=4k none /proc/sys/net && exec "$0" "$@"',
)  # fmt: skip
_QUICK_S = 30.0
_MEMORY_S = 600.0
_WORDS_PREFIX = ".words-"
# Its own processes that are no commands: they are the sandbox.
_SANDBOX_PROGRAMS = ("runsc-sandbox", "runsc-gofer")
_TERMINAL = "TERM=xterm-256color"
_FLAGS = {
    "platform": "systrap",
    "network": "sandbox",
    "net-disconnect-ok": "true",
    "overlay2": "root:memory",
    "dcache": "8000",
}


def find_runsc() -> Path:
    """``GLOWPLUG_RUNSC``, our own tools folder, or PATH. Raises SystemUnfit."""
    return find_program(
        "runsc",
        "runsc (gVisor)",
        variable="GLOWPLUG_RUNSC",
        remedy="`glowplug doctor --fix` installs gVisor.",
    )


class Runsc:
    """One runsc binary and one state folder. Implements :class:`~glowplug.runtime.port.Runtime`."""

    def __init__(self, root: Path, binary: Path | None = None) -> None:
        self._root = root
        self._binary = binary or find_runsc()

    def identity(self) -> RuntimeIdentity:
        """Version as the binary prints it, and the flags that shape a memory image."""
        _ = self._checkpoint_flags  # asked for now: at a checkpoint a server would stand still meanwhile
        return RuntimeIdentity("runsc", self._version, tuple(self._common_flags))

    def create(self, sandbox: Sandbox) -> int:
        """``runsc create``: the sandbox process exists, the application does not run yet."""
        bundle = write_bundle(sandbox, oci_config(sandbox))
        pid_file = sandbox.directory / "sandbox.pid"
        command = ["create", "--bundle", str(bundle), "--pid-file", str(pid_file), sandbox.id]
        self._run(command, sandbox.id, sandbox=sandbox, timeout_s=_QUICK_S)
        return int(pid_file.read_text())

    def start(self, sandbox: Sandbox) -> None:
        """``runsc start``."""
        self._run(["start", sandbox.id], sandbox.id, sandbox=sandbox, timeout_s=_QUICK_S)

    def restore(self, sandbox: Sandbox, image: Path) -> int:
        """``runsc restore``, which makes the sandbox too; returns once all pages are read.

        One command: `create` before it would be another start of runsc, 20 to 50 ms.
        """
        bundle = write_bundle(sandbox, oci_config(sandbox))
        pid_file = sandbox.directory / "sandbox.pid"
        command = ["restore", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file)]
        command += ["--image-path", str(image), sandbox.id]
        self._run(command, sandbox.id, sandbox=sandbox, timeout_s=_MEMORY_S)
        return int(pid_file.read_text())

    def checkpoint(self, sandbox_id: str, image: Path) -> None:
        """``runsc checkpoint``, uncompressed: a quarter of a second per GB instead of seconds.

        Past the page cache where the disk can: filling it is what a server would stand still for longest.
        """
        command = ["checkpoint", "--image-path", str(image)]
        for flag, value in (("compression", "none"), ("exclude-committed-zero-pages", "true")):
            if flag in self._checkpoint_flags:
                command.append(f"--{flag}={value}")
        if "direct" in self._checkpoint_flags and _can_write_directly(image.parent):
            command.append("--direct=true")
        try:
            self._run([*command, sandbox_id], sandbox_id, timeout_s=_MEMORY_S)
        except RuntimeFailed as error:
            check_room(image, sandbox_id, error)
            raise

    def signal(self, sandbox_id: str, name: str, pid: int = 1) -> None:
        """``runsc kill``."""
        target = [] if pid == 1 else ["--pid", str(pid)]
        self._run(["kill", *target, sandbox_id, name.removeprefix("SIG")], sandbox_id, timeout_s=_QUICK_S)

    def delete(self, sandbox_id: str, *, force: bool = True) -> None:
        """``runsc delete``; absent containers are fine."""
        command = ["delete", *(["--force"] if force else []), sandbox_id]
        # A command that was killed while it wrote what it knows leaves half of it: `delete` would fail at it.
        for state in self._root.glob(f"{sandbox_id}_sandbox:*.state"):
            if not _is_whole(state):
                state.unlink(missing_ok=True)
        self._run(command, sandbox_id, timeout_s=_QUICK_S)
        # A `create` that was killed, or refused because its id is in use, leaves its lock and its socket.
        for pattern in (f"{sandbox_id}_sandbox:*", f"runsc-{sandbox_id}.sock"):
            for left in self._root.glob(pattern):
                left.unlink(missing_ok=True)

    def exec_argv(
        self, sandbox_id: str, command: list[str], *, tty: bool, pid_file: Path | None = None
    ) -> list[str]:
        """``runsc exec``, which sees for itself whether its input is a terminal; the pid is the one inside.

        The caller runs it, and must have ended it before any checkpoint: the image could not be restored.
        """
        flags = [] if pid_file is None else ["--internal-pid-file", str(pid_file)]
        flags += ["--env", _TERMINAL] if tty else []
        return [str(self._binary), *self._global_flags(), "exec", *flags, sandbox_id, *command]

    def end_commands(self) -> None:
        """Kill every runsc command that works on our state folder, and remove what they were saying."""
        ours = f"--root={self._root}"
        kill_processes(lambda argv: ours in argv and argv[0] not in _SANDBOX_PROGRAMS)
        if self._root.is_dir():
            for words in self._root.glob(f"{_WORDS_PREFIX}*"):
                words.unlink(missing_ok=True)

    @cached_property
    def _version(self) -> str:
        text = self._text(["--version"])
        found = re.match(r"runsc version\s+(\S+)", text)
        if found is None:
            raise SystemUnfit(
                f"{self._binary} is not runsc: asked for its version it said {text[:80]!r}.",
                remedy="Run `glowplug doctor --fix` to install one, or set GLOWPLUG_RUNSC to a real one.",
            )
        return found.group(1)

    @cached_property
    def _common_flags(self) -> list[str]:
        known = set(re.findall(r"^\s+-([a-zA-Z0-9-]+)", self._text(["flags"]), re.MULTILINE))
        return [f"--{name}={value}" for name, value in _FLAGS.items() if name in known]

    @cached_property
    def _checkpoint_flags(self) -> set[str]:
        return set(re.findall(r"^\s+-([a-zA-Z0-9-]+)", self._text(["help", "checkpoint"]), re.MULTILINE))

    def _text(self, args: list[str]) -> str:
        try:
            done = subprocess.run(
                [str(self._binary), *args], capture_output=True, text=True, timeout=_QUICK_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SystemUnfit(
                f"{self._binary} does not run: {error}",
                remedy="Run `glowplug doctor --fix` to install one that does.",
            ) from error
        return done.stdout + done.stderr

    def _global_flags(self, sandbox: Sandbox | None = None) -> list[str]:
        access = "shared" if sandbox is not None and sandbox.host_changes_volumes else "exclusive"
        return [f"--root={self._root}", *self._common_flags, f"--file-access-mounts={access}"]

    def _run(
        self,
        command: list[str],
        subject: str,
        *,
        timeout_s: float,
        sandbox: Sandbox | None = None,
    ) -> None:
        """Run one runsc command to its end: its own words to a JSON log, the application's to its log."""
        self._root.mkdir(parents=True, exist_ok=True)
        argv = [] if sandbox is None else [*_HIDING_SYSCTL]
        with contextlib.ExitStack() as stack:
            words = stack.enter_context(tempfile.NamedTemporaryFile(dir=self._root, prefix=_WORDS_PREFIX))
            argv += [str(self._binary), *self._global_flags(sandbox)]
            argv += [f"--log={words.name}", "--log-format=json", *command]
            output = None
            if sandbox is not None:
                output = os.open(sandbox.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, output)
            run_to_end(
                argv,
                what=f"runsc {command[0]}",
                subject=subject,
                words=Path(words.name),
                output=output,
                timeout_s=timeout_s,
            )


def _can_write_directly(folder: Path) -> bool:
    """Whether the filesystem takes O_DIRECT."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return True


def _is_whole(state: Path) -> bool:
    try:
        json.loads(state.read_bytes())
    except (OSError, ValueError):
        return False
    return True
