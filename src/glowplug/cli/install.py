"""What ``doctor --fix`` can install: Debian packages, and the runsc that works.

Debian 12's own runsc is too old and newer ones do not run everywhere, so one version of the backport is asked
for by name, from the machine's own mirror, through a private apt configuration that leaves the system's
untouched. Packages are verified by apt with Debian's archive keyring; the binary is tried in a real sandbox
before it is renamed into place.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from glowplug.cli.apt_sources import debian_mirror, read_sources
from glowplug.cli.checks_tools import RUNSC, start_sandbox
from glowplug.cli.machine import LocalMachine
from glowplug.types.errors import DeadlineExceeded, SystemUnfit

RUNSC_PACKAGE = "runsc"
RUNSC_VERSION = "0.0~20240729.0-4~bpo12+2"
RUNSC_SUITE = "bookworm-backports"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT_TIMEOUT_S = 900.0
_TAIL_LINES = 15

Progress = Callable[[str, float | None], None]
"""Told what happens and how far it is: a text and a fraction (None: unknown)."""


def install_packages(packages: list[str], progress: Progress) -> None:
    """Install Debian packages with the system's own apt. Raises SystemUnfit with apt's last words."""
    progress("apt-get update", None)
    _run_apt(["update"], progress)
    progress(f"installing {' '.join(packages)}", 0.0)
    _run_apt(["install", "-y", "--no-install-recommends", *packages], progress)


def install_runsc(progress: Progress, destination: Path = RUNSC) -> None:
    """Put a runsc that works at ``destination``, atomically. Raises SystemUnfit when that is impossible."""
    mirror = debian_mirror(read_sources())
    with tempfile.TemporaryDirectory(prefix="glowplug-runsc-") as scratch:
        work = Path(scratch)
        options = private_apt(work, mirror)
        progress(f"reading the package list of {RUNSC_SUITE}", None)
        _run_apt([*options, "update"], progress, cwd=work)
        progress(f"downloading {RUNSC_PACKAGE} {RUNSC_VERSION}", None)
        _run_apt([*options, "download", f"{RUNSC_PACKAGE}={RUNSC_VERSION}"], progress, cwd=work)
        package = next(work.glob(f"{RUNSC_PACKAGE}_*.deb"))
        _run(["dpkg-deb", "-x", str(package), str(work / "unpacked")], cwd=work)
        progress("trying it in a sandbox", None)
        _publish(work / "unpacked" / "usr" / "bin" / "runsc", destination, work / "root")


def private_apt(work: Path, mirror: str) -> list[str]:
    """Options of apt with which it knows that suite alone, and leaves its traces below ``work``."""
    if not _KEYRING.is_file():
        raise SystemUnfit(
            f"{_KEYRING} is missing, so packages of Debian cannot be verified.",
            remedy="apt-get install debian-archive-keyring",
            path=str(_KEYRING),
        )
    for folder in ("lists/partial", "cache/archives/partial", "root"):
        (work / folder).mkdir(parents=True)
    source = work / "sources.list"
    source.write_text(f"deb [signed-by={_KEYRING}] {mirror} {RUNSC_SUITE} main\n")
    return [
        "-o", f"Dir::Etc::sourcelist={source}",
        "-o", "Dir::Etc::sourceparts=/dev/null",
        "-o", f"Dir::State::lists={work / 'lists'}",
        "-o", f"Dir::Cache={work / 'cache'}",
        "-o", "APT::Sandbox::User=root",
        "-o", "APT::Update::Error-Mode=any",
    ]  # fmt: skip


def _publish(binary: Path, destination: Path, scratch_root: Path) -> None:
    """Try the binary where it will lie, under a temporary name, then rename it into place."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(binary.read_bytes())
        temporary.chmod(0o755)
        tried = start_sandbox(LocalMachine(), temporary, scratch_root)
        if not tried.is_good:
            raise SystemUnfit(
                f"{RUNSC_PACKAGE} {RUNSC_VERSION} does not work on this machine: {tried.last_line}",
                remedy="In a container, allow CAP_SYS_ADMIN and CAP_SYS_PTRACE; see `glowplug doctor`.",
                output=tried.output.splitlines()[-_TAIL_LINES:],
            )
        temporary.replace(destination)
    except OSError as error:
        raise SystemUnfit(
            f"{destination} cannot be written: {error.strerror}.",
            remedy="Run as root, with room on the disk.",
            path=str(destination),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _run_apt(arguments: list[str], progress: Progress, cwd: Path | None = None) -> None:
    """apt-get with its machine-readable progress turned into ours."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read_end, "rb", buffering=0) as status:
        try:
            command = ["apt-get", "-q", "-o", f"APT::Status-Fd={write_end}", *arguments]
            running = _started(command, cwd, pass_fds=(write_end,))
            with running as (process, output):
                os.close(write_end)
                write_end = -1
                _follow_status(status, progress, time.monotonic() + _APT_TIMEOUT_S, process, command)
                _finish(process, output, command, time.monotonic() + 30.0)
        finally:
            if write_end >= 0:
                os.close(write_end)


def _follow_status(
    status: IO[bytes],
    progress: Progress,
    deadline: float,
    process: subprocess.Popen[bytes],
    command: list[str],
) -> None:
    pending = b""
    while True:
        readable, _, _ = select.select([status], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise _too_slow(command, process)
        data = status.read(65_536)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            report = parse_status(line.decode(errors="replace"))
            if report is not None:
                progress(*report)


def parse_status(line: str) -> tuple[str, float] | None:
    """apt's ``dlstatus:1:20.5:Retrieving file 1 of 3`` or ``pmstatus:pkg:60:Unpacking``; None for others."""
    kind, _, rest = line.partition(":")
    fields = rest.split(":", 2)
    if kind not in ("dlstatus", "pmstatus") or len(fields) < 3:
        return None
    try:
        percent = float(fields[1])
    except ValueError:
        return None
    return (fields[2].strip(), min(1.0, percent / 100)) if percent >= 0 else None


def _run(command: list[str], cwd: Path) -> None:
    with _started(command, cwd) as (process, output):
        _finish(process, output, command, time.monotonic() + 120.0)


@contextmanager
def _started(
    command: list[str], cwd: Path | None, pass_fds: tuple[int, ...] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A running command and the file with its words; it does not outlive the block, Ctrl-C included."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            )
        except OSError as error:
            raise SystemUnfit(
                f"{command[0]} cannot be run: {error.strerror}.",
                remedy="Only Debian and its relatives are set up automatically; see `glowplug doctor`.",
            ) from error
        try:
            yield process, output
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _finish(process: subprocess.Popen[bytes], output: IO[bytes], command: list[str], deadline: float) -> None:
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise _too_slow(command, process) from error
    if code != 0:
        output.seek(0)
        raise SystemUnfit(
            f"{command[0]} failed (exit code {code}).",
            remedy="Its last words are above: check the network, the package sources and the disk.",
            output=output.read().decode(errors="replace").splitlines()[-_TAIL_LINES:],
        )


def _too_slow(command: list[str], process: subprocess.Popen[bytes]) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{command[0]} (pid {process.pid}) did not end in time.",
        remedy="Check the network and whether another apt is running, then try again.",
        stage="install",
    )
