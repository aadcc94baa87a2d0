"""The process that must not die, so it does little: it holds the FUSE connection and minds the worker.

The kernel answers for a FUSE filesystem only as long as somebody has its descriptor open. The holder opens
it, mounts the filesystem, and starts workers that inherit it; when a worker dies, whatever it had not
answered waits in the kernel, and the next worker answers it. When the holder itself dies the worker goes on,
and the next holder gets the descriptors back from it. When both die, reads fail with EIO and the next holder
starts afresh.

Run as a file, not as a module, and made of the standard library only: importing our packages would cost more
than twice the memory that all of this takes. Usage: ``holder.py [--detach] FOLDER WORKER [ARGUMENT ...]``.
"""

# pathlib and contextlib are memory, too:
# ruff: noqa: PTH103, PTH108, PTH118, SIM105

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time

CONTROL_VERSION = 1
EXIT_GAVE_UP = 1
EXIT_ALREADY_RUNNING = 2

_MAX_READ_BYTES = 1 << 20
_MOUNT_FLAGS = 1 | 2 | 4 | 8  # MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC
_DETACH = 2 | 8  # MNT_DETACH, UMOUNT_NOFOLLOW
_NO_FOLLOW = 8
_FLOCK = struct.Struct("hhqqi4x")
_BACKLOG = 64
_HANDOVER_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 5.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_SOUND_AFTER_S = 10.0  # a worker that lived this long was a good one
_GIVE_UP_AFTER_S = 60.0  # without one: better that reads fail than that they wait for ever

Descriptors = tuple[int, int]
"""The FUSE connection, and the socket that listens for control connections."""


class Gone(Exception):
    """The filesystem was unmounted, or its connection aborted, by somebody else."""


class Holder:
    """One run of the holder, from its lock to its end."""

    def __init__(self, folder: str, worker: list[str]) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._folder = os.path.realpath(folder)
        self._blobs = os.path.join(self._folder, "blobs")
        self._socket_path = os.path.join(self._folder, "control.sock")
        self._worker_command = worker
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._restarts = 0
        self._failing_since_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Serve until told to stop. Returns the exit code."""
        if not self._take_lock("holder.lock"):
            say("another holder runs already")
            return EXIT_ALREADY_RUNNING
        adopted = self._adopt()
        if adopted is None:
            self._clear_leftovers()
            descriptors = self._mount(), self._listen()
            adopted = descriptors, self._start_worker(descriptors, is_first=True)
        self._take_lock("minding.lock")  # from here on the worker may die
        try:
            return self._supervise(*adopted)
        finally:
            self._unmount()
            remove(self._socket_path)

    def _supervise(self, descriptors: Descriptors, worker: int | None) -> int:
        started_s = time.monotonic()
        while True:
            if worker is not None:
                if self._sleep_until(worker, None):
                    self._stop(worker)
                    return 0
                os.close(worker)
            how = reap()
            lived_s = time.monotonic() - started_s
            if is_gone(descriptors[0]):
                say("the filesystem was unmounted or aborted; ending")
                return 0
            say(f"the worker ended after {lived_s:.1f} s{how}; another goes on")
            if not self._may_restart(lived_s):
                say("workers do not stay alive; giving up, so that reads fail rather than wait")
                return EXIT_GAVE_UP
            if self._sleep_until(None, self._pause_s):
                return 0
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._restarts += 1
            started_s = time.monotonic()
            worker = self._start_worker(descriptors, is_first=False)

    def _may_restart(self, lived_s: float) -> bool:
        now_s = time.monotonic()
        if lived_s >= _SOUND_AFTER_S:
            self._pause_s = _FIRST_PAUSE_S
            self._failing_since_s = None
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        return now_s - self._failing_since_s < _GIVE_UP_AFTER_S

    def _sleep_until(self, process: int | None, timeout_s: float | None) -> bool:
        """Wait for the process's end or the timeout; True if we are to stop instead."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if process is not None:
            poll.register(process, select.POLLIN)
        ready = poll.poll(None if timeout_s is None else timeout_s * 1000)
        return any(descriptor == self._wake for descriptor, _ in ready)

    def _stop(self, worker: int) -> None:
        self._unmount()  # while somebody answers what an unmount may ask
        signal_process(worker, signal.SIGTERM)
        poll = select.poll()
        poll.register(worker, select.POLLIN)
        if not poll.poll(_STOP_TIMEOUT_S * 1000):
            signal_process(worker, signal.SIGKILL)
            poll.poll(_STOP_TIMEOUT_S * 1000)
        reap()

    def _take_lock(self, name: str) -> bool:
        """Hold it until this process ends; False if another process does."""
        lock = os.open(os.path.join(self._folder, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _adopt(self) -> tuple[Descriptors, int | None] | None:
        """What a worker whose holder died hands over, and the worker unless it died since.

        None if no worker answers: then nobody has the descriptors any more.
        """
        try:
            descriptors, pid = self._ask_for_descriptors()
        except (OSError, ValueError, KeyError, TypeError) as problem:
            if not isinstance(problem, FileNotFoundError | ConnectionRefusedError):
                say(f"the worker does not hand over its descriptors: {problem!r}")
            return None
        say(f"took over from a holder that died; the worker is process {pid}")
        try:
            worker = os.pidfd_open(pid)
        except OSError:
            return descriptors, None
        if self._worker_pid() == pid:  # so this is still that process, not another with its number
            return descriptors, worker
        os.close(worker)
        return descriptors, None

    def _ask_for_descriptors(self) -> tuple[Descriptors, int]:
        """The descriptors and the number of the worker that answers on the socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_HANDOVER_TIMEOUT_S)
            client.connect(self._socket_path)
            client.sendall(json.dumps({"v": CONTROL_VERSION, "op": "take_fd"}).encode() + b"\n")
            answer, descriptors, _, _ = socket.recv_fds(client, 4096, 2)
        try:
            connection, listener = descriptors
            told = json.loads(answer)["ok"]
            self._restarts = int(told["restarts"])
            return (connection, listener), int(told["pid"])
        except (ValueError, KeyError, TypeError):
            for descriptor in descriptors:  # or nobody would notice that the connection has no server
                os.close(descriptor)
            raise

    def _worker_pid(self) -> int | None:
        """The living worker, by the lock that it holds."""
        try:
            descriptor = os.open(os.path.join(self._folder, "worker.lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        finally:
            os.close(descriptor)
        return None if kind == fcntl.F_UNLCK else pid

    def _clear_leftovers(self) -> None:
        """End a worker that hangs, take away mounts whose server died, and the dead socket."""
        pid = self._worker_pid()
        if pid is not None:
            say(f"ending worker {pid}, which does not answer")
            os.kill(pid, signal.SIGKILL)
            deadline_s = time.monotonic() + _STOP_TIMEOUT_S
            while self._worker_pid() == pid and time.monotonic() < deadline_s:
                time.sleep(0.01)
        while self._libc.umount2(os.fsencode(self._blobs), _DETACH) == 0:
            say("a filesystem without a server was taken away")
        remove(self._socket_path)

    def _mount(self) -> int:
        os.makedirs(self._blobs, mode=0o500, exist_ok=True)
        connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = (
            f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={_MAX_READ_BYTES}"
        )
        done = self._libc.mount(
            b"glowplug-blobs", os.fsencode(self._blobs), b"fuse", _MOUNT_FLAGS, options.encode()
        )
        if done != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), self._blobs)
        return connection

    def _unmount(self) -> None:
        target = os.fsencode(self._blobs)
        if self._libc.umount2(target, _NO_FOLLOW) != 0 and ctypes.get_errno() == errno.EBUSY:
            self._libc.umount2(target, _DETACH)

    def _listen(self) -> int:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(self._socket_path)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        return listener.detach()

    def _start_worker(self, descriptors: Descriptors, *, is_first: bool) -> int | None:
        """The new worker; None if there is no room for a process, which counts as one that died at once."""
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        command = [
            *self._worker_command,
            *("--fuse-fd", str(descriptors[0]), "--control-fd", str(descriptors[1])),
            *("--restarts", str(self._restarts)),
            *(() if is_first else ("--resend",)),
        ]
        try:
            return os.pidfd_open(os.posix_spawn(command[0], command, os.environ))
        except OSError as problem:
            say(f"no worker can be started: {problem}")
            return None


def is_gone(connection: int) -> bool:
    """Whether the filesystem of this connection is no more."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def signal_process(process: int, number: int) -> None:
    """Signal a process by its descriptor; one that has ended is no error."""
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        pass


def reap() -> str:
    """Take the exit codes of children that ended, as words. A worker that was taken over is none of ours."""
    how = ""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(ended[1])
            how = f" with exit code {code}" if code >= 0 else f" by signal {-code}"
    except ChildProcessError:
        pass
    return how


def remove(path: str) -> None:
    """Unlink a file that may be gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def say(words: str) -> None:
    """One line of log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} holder {os.getpid()}: {words}\n")
    sys.stderr.flush()


def detach() -> None:
    """Go on as nobody's child, in a session of our own, so that we outlive whoever started us."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()


def main(arguments: list[str]) -> int:
    """Run a holder. Returns the exit code."""
    if arguments[:1] == ["--detach"]:
        detach()
        arguments = arguments[1:]
    if len(arguments) < 2:
        sys.stderr.write(f"{__doc__}\n")
        return 64
    try:
        return Holder(arguments[0], arguments[1:]).run()
    except OSError as problem:
        say(f"cannot go on: {problem}")
        return EXIT_GAVE_UP


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
