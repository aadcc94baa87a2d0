"""One child of the supervisor: how it is started, how soon it is started again, where its output goes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from glowplug.engine.rotating_log import RotatingLog
from glowplug.types.clock import Clock

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_READ_BYTES = 64 * 1024


def become_subreaper() -> None:
    """Make orphans below us our children, so that their exit codes reach us. Raises OSError."""
    _prctl(ctypes.CDLL(None, use_errno=True), _PR_SET_CHILD_SUBREAPER, 1)


def _prctl(libc: ctypes.CDLL, option: int, argument: int) -> None:
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def dies_with_parent() -> Callable[[], None]:
    """What a new child runs between fork and exec: SIGTERM when its parent dies.

    Everything is looked up before the fork; safe only in a process without other threads.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def after_fork() -> None:
        _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before we could ask to die with it

    return after_fork


@dataclass
class Backoff:
    """Delays between restarts: doubling from ``first_s`` to ``longest_s``, forgotten after a good life.

    While a child is away callers are held, the router's in its listener's queue: the longest delay is what
    they can wait for besides a start. A child that never lives costs a second of a processor each time.
    """

    clock: Clock
    first_s: float = 0.1
    longest_s: float = 4.0
    good_life_s: float = 30.0
    failures: int = field(default=0, init=False)

    def next_delay_s(self, started_at: float) -> float:
        """How long to wait now that a life begun at ``started_at`` (monotonic) has ended."""
        if self.clock.monotonic() - started_at >= self.good_life_s:
            self.failures = 0
        delay_s = min(self.longest_s, self.first_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return delay_s


class Child:
    """A supervised command. The supervisor alone waits for processes and tells a child of its end.

    Its output (stdout and stderr) is read by the supervisor from what :meth:`start` returns. Its environment
    is the supervisor's, without the variables ``kept_from_it``.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log: RotatingLog,
        clock: Clock,
        pass_fds: tuple[int, ...] = (),
        kept_from_it: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.restart_at: float | None = None
        self._backoff = Backoff(clock)
        self._clock = clock
        self._pass_fds = pass_fds
        self._environment = {k: v for k, v in os.environ.items() if k not in kept_from_it}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = clock.monotonic()

    @property
    def pid(self) -> int | None:
        """Its pid while it lives."""
        return self._process.pid if self._process else None

    @property
    def failures(self) -> int:
        """How many short lives it has had in a row."""
        return self._backoff.failures

    def start(self) -> int:
        """Start it; the caller owns the returned, non-blocking read end of its output.

        Raises OSError when the command cannot be run.
        """
        self.restart_at = None
        self._started_at = self._clock.monotonic()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            # Its own session: a Ctrl-C in the terminal reaches the supervisor only, which keeps the order.
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=self._environment,
                pass_fds=self._pass_fds,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        os.set_blocking(read_end, False)
        return read_end

    def ended(self, wait_status: int) -> float:
        """Note that it was reaped; returns the delay after which it is due again."""
        if self._process is not None:
            self._process.returncode = os.waitstatus_to_exitcode(wait_status)
            self._process = None
        return self.schedule_restart()

    def schedule_restart(self) -> float:
        """Make it due again after the back-off's delay, which is returned."""
        delay_s = self._backoff.next_delay_s(self._started_at)
        self.restart_at = self._clock.monotonic() + delay_s
        return delay_s

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
