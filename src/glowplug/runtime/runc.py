"""``runc`` with CRIU behind the :class:`~glowplug.runtime.port.Runtime` port: the host's own kernel.

For code that is trusted: faster than gVisor, and less of a wall. What is peculiar (``docs/runtimes.md``):

* ``runc restore`` makes the container itself; so does :meth:`Runc.restore`.
* runc calls CRIU, as it knows how a container's mounts, namespaces and cgroups map to CRIU's options. What it
  has no flag for stands in a file named by the annotation ``org.criu.config``.
* The log is a file of the host that the container has open. CRIU is told so (``external``); at restore the
  copy's own log, which runc hands down as its standard output, takes its place (``inherit-fd``).
* The pid that ``runc exec`` leaves is the host's; :meth:`Runc.signal` makes sure that it is still the
  container's before it is signalled.
* Whether the kernel may merge a copy's pages is a flag of its address space, which is handed on from whoever
  starts runc: CRIU and what it restores have it from there. A memory image never holds it, as only copies do.
* A restored copy gets its host name from here, which needs no capability in the container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from glowplug.runtime import criu
from glowplug.runtime.bundle import write_bundle
from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.runtime.command import check_room, find_program, kill_processes, run_to_end
from glowplug.runtime.port import Sandbox
from glowplug.runtime.runc_bundle import PROFILE_VERSION, runc_config
from glowplug.runtime.runc_image import FILES_ARCHIVE, check_empty, read_description, write_description
from glowplug.runtime.runc_processes import check_one_tree, drops_termination, outside_files, set_hostname
from glowplug.runtime.writable import WritableFolders, unmount_below
from glowplug.types.errors import RuntimeFailed, SystemUnfit
from glowplug.types.identity import RuntimeIdentity

_QUICK_S = 30.0
_MEMORY_S = 600.0
_TERMINAL = "TERM=xterm-256color"
_STDOUT = 1
# Made of native/*.cpp when Glowplug is installed.
_MERGE_PAGES = Path(__file__).with_name("_merge_pages")
_KEEP_TILES = Path(__file__).with_name("_keep_tiles.so")


def find_runc() -> Path:
    """``GLOWPLUG_RUNC``, our own tools folder, or PATH. Raises SystemUnfit."""
    return find_program(
        "runc", "runc", variable="GLOWPLUG_RUNC", remedy="`glowplug doctor --fix` installs Debian's."
    )


class Runc:
    """One runc, one CRIU and one state folder. Implements :class:`~glowplug.runtime.port.Runtime`."""

    def __init__(self, root: Path, binary: Path | None = None, criu_binary: Path | None = None) -> None:
        self._state = root / "state"
        self._sandboxes = root / "sandboxes"
        self._binary = binary or find_runc()
        self._criu = criu_binary or criu.find_criu()

    def identity(self) -> RuntimeIdentity:
        """Both versions, CRIU's options and the version of the seccomp profile."""
        flags = (*criu.COMMON_OPTIONS, f"profile={PROFILE_VERSION}")
        return RuntimeIdentity("runc", f"{self._version} with criu {self._criu_version}", flags)

    def create(self, sandbox: Sandbox) -> int:
        """``runc create``: the container's first process waits to become the application."""
        with self._prepared(sandbox) as bundle:
            pid_file = _pid_file(sandbox)
            command = ["create", "--bundle", str(bundle), "--pid-file", str(pid_file), sandbox.id]
            self._run(command, sandbox.id, log=sandbox.log)
        return int(pid_file.read_text())

    def start(self, sandbox: Sandbox) -> None:
        """``runc start``."""
        self._run(["start", sandbox.id], sandbox.id)

    def restore(self, sandbox: Sandbox, image: Path) -> int:
        """``runc restore`` of CRIU's files, on top of the files that the container had written."""
        outside = read_description(image, sandbox.id)
        with self._prepared(sandbox) as bundle:
            self._writable(sandbox.id).load(image / FILES_ARCHIVE)
            self._criu_config(sandbox.id).write_text(criu.restore_options(outside, _STDOUT))
            pid_file = _pid_file(sandbox)
            command = ["restore", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file)]
            command += ["--image-path", str(image), "--work-path", str(self._folder(sandbox.id)), sandbox.id]
            self._run_criu(
                command,
                sandbox.id,
                "restore.log",
                "Restore finished successfully",
                log=sandbox.log,
                become=[str(_MERGE_PAGES)] if sandbox.merges_pages else [],
                preload=_KEEP_TILES,
            )
            pid = int(pid_file.read_text())
            set_hostname(pid, sandbox.hostname)
        return pid

    def checkpoint(self, sandbox_id: str, image: Path) -> None:
        """``runc checkpoint``, then the files that the container had written."""
        check_empty(image, sandbox_id)
        pids = self._pids(sandbox_id)
        check_one_tree(pids, sandbox_id)
        outside = outside_files(pids, self._log(sandbox_id))
        self._criu_config(sandbox_id).write_text(criu.dump_options(outside))
        command = ["checkpoint", "--image-path", str(image), "--work-path", str(self._folder(sandbox_id))]
        try:
            self._run_criu([*command, sandbox_id], sandbox_id, "dump.log", "Dumping finished successfully")
            self._writable(sandbox_id).save(image / FILES_ARCHIVE)
        except RuntimeFailed as error:
            check_room(image, sandbox_id, error)
            raise
        write_description(image, outside)

    def signal(self, sandbox_id: str, name: str, pid: int = 1) -> None:
        """``runc kill`` for the first process, ourselves for what ``exec`` started.

        A first process that SIGTERM does not reach is killed: it would end anywhere but in a container.
        """
        if pid == 1:
            if name == "SIGTERM" and drops_termination(self._first_pid(sandbox_id)):
                name = "SIGKILL"
            self._run(["kill", sandbox_id, name], sandbox_id)
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            raise _not_running(sandbox_id, pid) from None
        try:  # with the descriptor open the number cannot come to mean another process
            if pid not in self._pids(sandbox_id):
                raise _not_running(sandbox_id, pid)
            signal.pidfd_send_signal(descriptor, signal.Signals[name])
        finally:
            os.close(descriptor)

    def delete(self, sandbox_id: str, *, force: bool = True) -> None:
        """``runc delete``, and the container's writable files; absent containers are fine."""
        self._run(["delete", *(["--force"] if force else []), sandbox_id], sandbox_id)
        # runc does not know a container whose `restore` was killed, and so leaves what was made for it.
        for folder in (self._folder(sandbox_id), self._state / sandbox_id):
            unmount_below(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def exec_argv(
        self, sandbox_id: str, command: list[str], *, tty: bool, pid_file: Path | None = None
    ) -> list[str]:
        """``runc exec``; the pid is the host's.

        The caller runs it, and must have ended it before any checkpoint, which is refused otherwise.
        """
        flags = [] if pid_file is None else ["--pid-file", str(pid_file)]
        flags += ["--tty", "--env", _TERMINAL] if tty else []
        return [*self._command, "exec", *flags, sandbox_id, *command]

    def end_commands(self) -> None:
        """Kill every runc command that works on our state folder. CRIU, its child, ends with it."""
        ours = f"--root={self._state}"
        kill_processes(lambda argv: ours in argv)

    # -- a container's own folder ----------------------------------------------------------------------------

    def _folder(self, sandbox_id: str) -> Path:
        return self._sandboxes / sandbox_id

    def _criu_config(self, sandbox_id: str) -> Path:
        return self._folder(sandbox_id) / "criu.conf"

    def _writable(self, sandbox_id: str) -> WritableFolders:
        return WritableFolders(self._folder(sandbox_id))

    def _log(self, sandbox_id: str) -> Path:
        """A link to the container's log."""
        return self._folder(sandbox_id) / "log"

    @contextlib.contextmanager
    def _prepared(self, sandbox: Sandbox) -> Iterator[Path]:
        """The bundle's folder, and all that the container needs; removed again if the block fails."""
        folder = self._folder(sandbox.id)
        try:
            folder.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise RuntimeFailed(f"The id {sandbox.id} is in use.", sandbox=sandbox.id) from None
        try:
            writable = self._writable(sandbox.id)
            writable.mount(sandbox.base, sandbox.memory_bytes)
            self._log(sandbox.id).symlink_to(sandbox.log)
            yield write_bundle(sandbox, runc_config(sandbox, writable, self._criu_config(sandbox.id)))
        except BaseException:
            ReplicaCgroup(sandbox.id).kill_all()  # half-restored processes that CRIU, killed, left behind
            self.delete(sandbox.id)
            raise

    # -- the programs ----------------------------------------------------------------------------------------

    @cached_property
    def _version(self) -> str:
        found = re.search(r"runc version (\S+)", self._text([str(self._binary), "--version"]))
        if found is None:
            raise SystemUnfit(
                f"{self._binary} is not runc.", remedy="`glowplug doctor --fix` installs Debian's."
            )
        return found[1]

    @cached_property
    def _criu_version(self) -> str:
        found = re.search(r"Version: (\S+)", self._text([str(self._criu), "--version"]))
        if found is None:
            raise SystemUnfit(f"{self._criu} is not CRIU.", remedy="scripts/setup_criu.sh builds one.")
        return found[1]

    @property
    def _command(self) -> list[str]:
        return [str(self._binary), f"--root={self._state}", f"--criu={self._criu}"]

    def _pids(self, sandbox_id: str) -> list[int]:
        """The host's pids of all processes in the container. Raises RuntimeFailed when there is none."""
        argv = [*self._command, "ps", "--format", "json", sandbox_id]
        try:
            return [int(pid) for pid in json.loads(self._text(argv))]
        except (ValueError, TypeError):
            raise RuntimeFailed(f"There is no container {sandbox_id}.", sandbox=sandbox_id) from None

    def _first_pid(self, sandbox_id: str) -> int:
        """The host's pid of the container's first process; 0 if there is none."""
        try:
            return int(json.loads(self._text([*self._command, "state", sandbox_id]))["pid"])
        except (ValueError, TypeError, KeyError):
            return 0

    def _text(self, argv: list[str]) -> str:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_QUICK_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SystemUnfit(
                f"{argv[0]} does not run: {error}", remedy="`glowplug doctor` checks runc and CRIU."
            ) from error
        return done.stdout

    def _run(
        self,
        command: list[str],
        subject: str,
        *,
        log: Path | None = None,
        become: Sequence[str] = (),
        timeout_s: float = _QUICK_S,
        helper: str | None = None,
        preload: Path | None = None,
    ) -> None:
        """Run one runc command to its end: its own words to a JSON log, the application's to ``log``.

        ``become`` is a program that becomes runc: what it sets for itself holds for the container too.
        ``helper`` is a program that has to be at work below it, ``preload`` a library that it loads.
        """
        self._state.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            words = stack.enter_context(tempfile.NamedTemporaryFile(prefix="glowplug-runc-"))
            output = None
            if log is not None:
                output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, output)
            run_to_end(
                [*become, *self._command, f"--log={words.name}", "--log-format=json", *command],
                what=f"runc {command[0]}",
                subject=subject,
                words=Path(words.name),
                output=output,
                timeout_s=timeout_s,
                helper=helper,
                preload=preload,
            )

    def _run_criu(
        self,
        command: list[str],
        subject: str,
        log_name: str,
        success: str,
        *,
        log: Path | None = None,
        become: Sequence[str] = (),
        preload: Path | None = None,
    ) -> None:
        """Run a command that calls CRIU; CRIU's log ``log_name`` says how it went.

        A CRIU that is killed while it tries what the kernel can do leaves a stopped child with the socket at
        whose other end runc waits (fork_and_ptrace_attach in criu/kerndat.c).
        """
        criu_log = self._folder(subject) / log_name
        cause = None
        try:
            self._run(
                command, subject, log=log, become=become, timeout_s=_MEMORY_S, helper="criu", preload=preload
            )
        except RuntimeFailed as error:
            cause = error
        criu.check_log(f"runc {command[0]}", criu_log, subject, success=success, cause=cause)


def _not_running(sandbox_id: str, pid: int) -> RuntimeFailed:
    return RuntimeFailed(f"Process {pid} is not in {sandbox_id} (any more).", sandbox=sandbox_id, pid=pid)


def _pid_file(sandbox: Sandbox) -> Path:
    """Where runc tells the first process, free for it: a runc that was killed leaves its draft of that file.

    The draft must not exist (createPidFile in runc's utils_linux.go: ``O_EXCL``).
    """
    path = sandbox.directory / "sandbox.pid"
    path.with_name(f".{path.name}").unlink(missing_ok=True)
    return path
