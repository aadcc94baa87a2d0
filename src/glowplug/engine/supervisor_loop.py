"""The one process that is never restarted: it keeps the agent alive, and what serves in front of it.

That is the control plane, or on a node of a cluster the router and the gateway. Beside the control plane
there may be an engine that machines come from, and what that stands on. It holds the listening sockets, so
that a restart of those refuses no connection; starts its children again whenever they end, with a back-off
and without ever giving up; reaps orphaned sandboxes and notes how they ended; and ends everything in order:
SIGTERM leaves replicas running (the next ``up`` adopts them), SIGINT has the agent stop them first. One
thread and one ``select``: small enough to trust.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from glowplug.engine.child import Child
from glowplug.engine.exits import ExitNotes
from glowplug.types.clock import Clock

_READ_BYTES = 64 * 1024
_IDLE_WAIT_S = 60.0
_WATCHED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass(frozen=True)
class Patience:
    """How long each child may take to end before it is killed.

    Control finishes requests in flight for 10 s; the agent gives every replica its grace period, and the
    engine waits for agents on other machines that do.
    """

    front_s: float = 15.0
    agent_s: float = 60.0
    engine_s: float = 110.0
    base_s: float = 20.0


class Supervisor:
    """Owner of all children, their output pipes and all signals of this process.

    ``fronts`` end one after the other, in this order, before the agent does.
    """

    def __init__(
        self,
        *,
        fronts: Sequence[Child],
        agent: Child,
        listeners: Sequence[socket.socket],
        notes: ExitNotes,
        clock: Clock,
        log: logging.Logger,
        engine: Child | None = None,
        base: Child | None = None,
        patience: Patience | None = None,
        echo: bool = False,
    ) -> None:
        self._fronts = fronts
        self._agent = agent
        self._engine = engine
        self._base = base
        self._children = tuple(child for child in (base, agent, *fronts, engine) if child is not None)
        self._listeners = listeners
        self._notes = notes
        self._clock = clock
        self._log = log
        self._patience = patience or Patience()
        self._echo = echo
        self._selector = selectors.DefaultSelector()
        self._stop_signals: list[int] = []
        self._stopping = False

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT, then end all children and return."""
        wakeup_read, wakeup_write = socket.socketpair()
        for end in (wakeup_read, wakeup_write):
            end.setblocking(False)
        previous_handlers = {number: signal.signal(number, _note) for number in _WATCHED_SIGNALS}
        previous_wakeup = signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(wakeup_read, selectors.EVENT_READ, None)
        try:
            for child in self._children:
                self._start(child)
            self._pump_until(lambda: bool(self._stop_signals), None)
            self._shut_down()
        finally:
            self._release_outputs()
            signal.set_wakeup_fd(previous_wakeup)
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
            wakeup_read.close()
            wakeup_write.close()

    def _shut_down(self) -> None:
        self._stopping = True
        first = self._stop_signals[0]
        self._log.info(
            "%s: stopping%s", signal.Signals(first).name, " and ending replicas" * (first == signal.SIGINT)
        )
        for child in self._children:
            child.restart_at = None
        if self._engine is not None:  # it needs the control plane, and what it stands on, to the end
            self._end(self._engine, first, self._patience.engine_s)
        # Ours first: from here on new connections are refused instead of waiting for nobody.
        for listener in self._listeners:
            listener.close()
        for front in self._fronts:
            self._end(front, signal.SIGTERM, self._patience.front_s)
        self._end(self._agent, first, self._patience.agent_s)
        if self._base is not None:
            self._end(self._base, signal.SIGTERM, self._patience.base_s)
        self._log.info("stopped")

    def _end(self, child: Child, number: int, patience_s: float) -> None:
        child.signal(number)
        deadline = self._clock.monotonic() + patience_s
        if self._pump_until(lambda: child.pid is None or len(self._stop_signals) > 1, deadline):
            if child.pid is None:
                return
            self._log.warning("asked again to stop: killing %s", child.name)
        else:
            self._log.error("%s did not end within %.0f s: killing it", child.name, patience_s)
        child.signal(signal.SIGKILL)
        self._pump_until(lambda: child.pid is None, self._clock.monotonic() + 10.0)

    def _start(self, child: Child) -> None:
        try:
            output = child.start()
        except OSError as error:
            self._log.error(
                "%s cannot be started (%s); next try in %.1f s", child.name, error, child.schedule_restart()
            )
            return
        self._selector.register(output, selectors.EVENT_READ, child)
        self._log.info("%s runs as pid %s", child.name, child.pid)

    def _pump_until(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        while not condition():
            now = self._clock.monotonic()
            if deadline is not None and now >= deadline:
                return False
            due = [child.restart_at for child in self._children if child.restart_at is not None]
            wake_at = min([*due, now + _IDLE_WAIT_S, *([deadline] if deadline is not None else [])])
            for key, _ in self._selector.select(max(0.0, wake_at - now)):
                if key.data is None:
                    self._take_signals(key.fd)
                else:
                    self._copy_output(key.fd, key.data)
            self._restart_due()
        return True

    def _take_signals(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            numbers = os.read(descriptor, _READ_BYTES)
            self._stop_signals += [n for n in numbers if n in (signal.SIGTERM, signal.SIGINT)]
        self._reap()

    def _restart_due(self) -> None:
        now = self._clock.monotonic()
        for child in self._children:
            if child.restart_at is not None and now >= child.restart_at:
                self._start(child)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((child for child in self._children if child.pid == pid), None)
            if child is None:
                self._note_orphan(pid, status)
            else:
                self._note_end(child, status)

    def _note_orphan(self, pid: int, status: int) -> None:
        try:
            self._notes.add(pid, status)
        except OSError as error:
            self._log.error("cannot note how orphan %d ended (status %d): %s", pid, status, error)

    def _note_end(self, child: Child, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        delay_s = child.ended(status)
        if self._stopping:
            child.restart_at = None
            self._log.info("%s %s", child.name, how)
        else:
            self._log.error(
                "%s %s; restarting it in %.1f s (short lives in a row: %d; we never give up)",
                child.name, how, delay_s, child.failures,
            )  # fmt: skip

    def _copy_output(self, descriptor: int, child: Child) -> None:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            # A restarted child has a new pipe; the old one lives as long as an orphan writes to it.
            self._release_output(descriptor)
            return
        child.log.write(data)
        if self._echo:
            sys.stderr.buffer.write(data)
            sys.stderr.flush()

    def _release_output(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _release_outputs(self) -> None:
        """Take the last words of all children, then close every pipe."""
        while True:
            ready = [key for key, _ in self._selector.select(0) if key.data is not None]
            if not ready:
                break
            for key in ready:
                self._copy_output(key.fd, key.data)
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._release_output(key.fd)
        self._selector.close()


def _note(number: int, frame: FrameType | None) -> None:
    """Python-level handlers do nothing: the wake-up descriptor carries the numbers."""
