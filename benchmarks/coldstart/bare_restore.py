"""The yardstick: what the runtime's own ``restore`` command takes for the same image, with nothing of ours.

A copy's bundle is taken as Glowplug made it while the copy ran, so flags, mounts, limits and memory image are
the same; only its network namespace, cgroup and id are fresh ones of the benchmark's own. Preparing those is
not timed: the clock runs from the restore command to the first answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.runtime.cgroup import ReplicaCgroup, cgroup_path
from glowplug.runtime.network import REPLICA_ADDRESS, ReplicaNetwork
from glowplug.runtime.runsc import Runsc, find_runsc
from glowplug.types.errors import DeadlineExceeded, RuntimeFailed

RESTORE_TIMEOUT_S = 120.0
# runsc of 2024 takes a private network namespace for the host's on kernels that show this folder in it.
_HIDE_SYSCTL = 'mount -t tmpfs -o ro,size=4k none /proc/sys/net && exec "$0" "$@"'


@dataclass(frozen=True)
class BareTimes:
    """Seconds from the restore command to its end, and to the first answer."""

    restored_s: float
    answered_s: float


class BareRestore:
    """Restores one memory image again and again. Owns ``work`` and all it starts; one run at a time."""

    def __init__(self, replica_folder: Path, image: Path, work: Path) -> None:
        """``replica_folder`` is that of a *running* copy: what is needed of it is copied now."""
        self._image = image
        self._work = work
        self._folder = work / "replica"
        shutil.copytree(replica_folder, self._folder)
        config = (self._folder / "bundle" / "config.json").read_text()
        self._config: dict[str, Any] = json.loads(config.replace(str(replica_folder), str(self._folder)))
        self._program = self._find_program()

    def run(self, index: int, port: int, method: str, path: str, body: Any, expected: bytes) -> BareTimes:
        """One restore to its first answer. Raises RuntimeFailed when the answer is another one."""
        name = f"bare-{os.getpid()}-{index}"
        network = ReplicaNetwork(name)
        network.create()
        try:
            self._write_config(name, network)
            self._prepare(name)
            started = time.monotonic()
            with self._restored(name):
                restored_s = time.monotonic() - started
                network.open_gateway()
                answer = _request(str(network.path), port, method, path, body)
                answered_s = time.monotonic() - started
            if answer != expected:
                raise RuntimeFailed(f"The bare copy answered {answer!r}, expected {expected!r}.")
            return BareTimes(restored_s, answered_s)
        finally:
            network.remove()

    def _find_program(self) -> list[str]:
        """The runtime's program and its global flags."""
        binary, root = find_runsc(), self._work / "runsc"
        flags = [f"--root={root}", *Runsc(root, binary).identity().flags, "--file-access-mounts=exclusive"]
        return [str(binary), *flags]

    def _prepare(self, name: str) -> None:
        """Make what a restore of the copy ``name`` needs, beyond its bundle; it is not timed."""

    def _restore_command(self) -> list[str]:
        """The command line of a restore, but for the pid file and the copy's name."""
        command = ["unshare", "--mount", "sh", "-c", _HIDE_SYSCTL, *self._program, "restore", "--detach"]
        return [*command, "--bundle", str(self._folder / "bundle"), "--image-path", str(self._image)]

    def close(self) -> None:
        """Undo what :meth:`_prepare` made last."""

    def _write_config(self, name: str, network: ReplicaNetwork) -> None:
        linux = self._config["linux"]
        linux["cgroupsPath"] = cgroup_path(name)
        for namespace in linux["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = str(network.path)
        (self._folder / "bundle" / "config.json").write_text(json.dumps(self._config))

    @contextlib.contextmanager
    def _restored(self, name: str) -> Iterator[None]:
        """A restored container, which is gone again afterwards."""
        pid_file = self._work / "sandbox.pid"
        try:
            self._run([*self._restore_command(), "--pid-file", str(pid_file), name])
            yield
        finally:
            self._delete(name, pid_file)

    def _delete(self, name: str, pid_file: Path) -> None:
        """Kill and remove the container, and whatever is left of its cgroup."""
        cgroup = ReplicaCgroup(name)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pidfd = os.pidfd_open(int(pid_file.read_text()))
            try:
                cgroup.kill_all()
                if not select.select([pidfd], [], [], 30.0)[0]:
                    raise DeadlineExceeded(f"The sandbox of {name} does not end.")
            finally:
                os.close(pidfd)
        pid_file.unlink(missing_ok=True)
        self._run([*self._program, "delete", "--force", name], reap_orphans=True)
        cgroup.remove()

    def _run(self, command: list[str], *, reap_orphans: bool = False) -> None:
        log_path = self._work / "command.log"
        log_path.touch(0o600)  # as replicas' logs are: CRIU compares
        with (
            log_path.open("ab") as log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            ) as process,
        ):
            try:
                if reap_orphans:
                    _reap_orphans_until(process, time.monotonic() + RESTORE_TIMEOUT_S)
                if process.returncode is None and not _is_over(process.pid, RESTORE_TIMEOUT_S):
                    raise DeadlineExceeded(f"{command[0]} does not end.")
                code = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if code != 0:
            words = log_path.read_text(errors="replace")[-2000:]
            raise RuntimeFailed(f"{' '.join(command)} failed (exit code {code}):\n{words}")


def _is_over(pid: int, timeout_s: float) -> bool:
    """Whether a child ends in time, noticed at once: ``Popen.wait`` with a deadline looks every 50 ms."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)


def _request(netns: str, port: int, method: str, path: str, body: Any) -> bytes:
    """One HTTP request inside a network namespace, tried until somebody listens. Raises RuntimeFailed."""
    connection = http.client.HTTPConnection(REPLICA_ADDRESS, port, timeout=60.0)
    connection.sock = _connect(netns, port)
    try:
        payload = None if body is None else json.dumps(body)
        headers = {"connection": "close"} | ({} if body is None else {"content-type": "application/json"})
        connection.request(method, path, payload, headers)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeFailed(f"The bare copy answered {response.status}: {answer[:500]!r}")
    return answer


def _connect(netns: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 30.0
    with NamespaceSockets(netns) as sockets:
        while True:
            connected = sockets.open(socket.AF_INET)
            connected.settimeout(5.0)
            try:
                connected.connect((REPLICA_ADDRESS, port))
                return connected
            except OSError as error:
                connected.close()
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(f"Nothing listens in {netns}: {error}") from error
                time.sleep(0.002)


def _reap_orphans_until(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Reap ended sandboxes and gofers until ``process`` ends: runsc's delete waits until somebody has."""
    while process.poll() is None and time.monotonic() < deadline:
        # Only looking (WNOWAIT): the end of ``process`` itself is not ours to take.
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_pid != process.pid:
            os.waitpid(ended.si_pid, 0)
        else:
            time.sleep(0.01)
