"""The side of a rank that does what it is told: a port on loopback, the state of its communicators, and a
watchdog.

Whatever happens to whoever tells it, a rank does not stay where it is: a connection that ends without the
word END, or a step that outlives its time, fails the gate, and threads that wait there get an error.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from glowplug.nccl.gate import Gate
from glowplug.nccl.line import Line
from glowplug.nccl.words import ALLOWED_IN, Deadlines, Reply, Request, State, Step
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    InvalidInput,
    ReplicaFailed,
    Unauthorized,
)

LOOPBACK = "127.0.0.1"
GRACE_S = 4.0
"""A step that takes so much longer than its deadline is given up by the rank itself."""
_TICK_S = 0.25
_SHARE = 0.75
"""Of a deadline, to wait for other ranks: whoever waits in vain can still say so in time."""
_SEND_S = 5.0

_log = logging.getLogger("glowplug.nccl")


class Groups(Protocol):
    """The communicators of one rank.

    Duties: nothing is called twice at once. All may raise GlowplugError; whatever else is raised is told to
    the coordinator as a failure of this rank. Afterwards ``rebuild`` is possible from wherever it stopped.
    """

    def census(self, deadline_s: float) -> dict[str, Any]:
        """Wait for what is in flight, then say what there is. Conflict, ``is_busy``, if it does not end."""
        ...

    def release(self, deadline_s: float) -> None:
        """Suspend or destroy all."""
        ...

    def rebuild(self, port: int, generation: int, deadline_s: float) -> None:
        """Make all anew, in the order in which they were made, through the store at that port of loopback."""
        ...

    def verify(self, deadline_s: float) -> None:
        """Raises unless every group has its members, all of this generation."""
        ...

    def settled(self) -> None:
        """What was rebuilt and verified is going to be used."""
        ...


class Member:
    """One rank. ``unresumed`` is called, on a thread of its own, when its groups stay released too long."""

    def __init__(
        self,
        rank: int,
        groups: Groups,
        gate: Gate,
        deadlines: Deadlines,
        unresumed: Callable[[], object] | None = None,
    ) -> None:
        self.rank = rank
        self.state = State.RUNNING
        self.generation = 0
        self.token = ""
        self._groups = groups
        self._gate = gate
        self._deadlines = deadlines
        self._unresumed = unresumed
        self._left_s = 0.0
        self._watcher: threading.Thread | None = None
        self._has_taken_back = False
        self._is_parted = False
        self._changed = threading.Condition()
        self._is_closed = False
        self._listener = socket.create_server((LOOPBACK, 0))
        threading.Thread(target=self._accept, name="glowplug-nccl", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens, on loopback."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Listen no more. Its thread ends with the connection that it may have."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a close alone does not wake who accepts
        self._listener.close()

    def fail(self, error: GlowplugError) -> None:
        """Give the communicators up for good."""
        with self._changed:
            self.state = State.FAILED
            self._watcher = None
            self._changed.notify_all()
        _log.error("rank %d: %s", self.rank, error)
        self._gate.fail(error)

    # -- the connection --------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._serve(Line(connection))

    def _serve(self, line: Line) -> None:
        """One connection to its end: one preparation or one resumption."""
        is_ours, is_ended = False, False
        try:
            while not is_ended and (message := line.receive(self._deadlines.gap_s)) is not None:
                request = Request.from_message(message)
                self._authenticate(request)
                is_ours, is_ended = True, request.step is Step.END
                line.send(self._answer(request).to_message(), _SEND_S)
        except (OSError, InvalidInput, Unauthorized, DeadlineExceeded) as problem:
            _log.warning("rank %d: a connection ended: %s", self.rank, problem)
        finally:
            line.close()
        if is_ours and not is_ended and self.state not in (State.RUNNING, State.FAILED):
            self.fail(
                ReplicaFailed(
                    f"The rank that coordinates ended or hung while rank {self.rank} was {self.state}.",
                    remedy="The log of rank 0 tells why; start the server again.",
                    rank=self.rank,
                    state=self.state.value,
                )
            )

    def _authenticate(self, request: Request) -> None:
        if not self.token or not hmac.compare_digest(request.token.encode(), self.token.encode()):
            raise Unauthorized("Somebody who is no rank of this job talks to its port.")

    def _answer(self, request: Request) -> Reply:
        self._is_parted = False
        self._watch(request.deadline_s + GRACE_S)
        try:
            result = self._do(request)
        except GlowplugError as error:
            error.details.setdefault("rank", self.rank)
            error.details.setdefault("step", request.step.value)
            return Reply(self.rank, error=error)
        except Exception as error:  # noqa: BLE001 - PyTorch raises RuntimeError for most of what fails
            return Reply(self.rank, error=self._unexpected(request.step, error))
        finally:
            self._is_parted = request.step is Step.END
            self._watch(self._until_next())
        return Reply(self.rank, result=result)

    def _unexpected(self, step: Step, error: Exception) -> ReplicaFailed:
        _log.exception("rank %d: %s failed", self.rank, step)
        return ReplicaFailed(
            f"Rank {self.rank} failed to {step}: {type(error).__name__}: {error}",
            remedy="The log of that rank tells more.",
            rank=self.rank,
            step=step.value,
        )

    # -- the steps -------------------------------------------------------------------------------------------

    def _do(self, request: Request) -> dict[str, Any]:
        step, waiting_s = request.step, request.deadline_s * _SHARE
        if self.state not in ALLOWED_IN[step]:
            raise Conflict(
                f"Rank {self.rank} is {self.state} and cannot {step}.",
                remedy="Prepare once, then resume once.",
                state=self.state.value,
            )
        match step:
            case Step.HOLD:
                return self._hold(request)
            case Step.RELEASE:
                self._become(State.RELEASED)  # also if it fails half-way: only a rebuild leads back
                self._groups.release(waiting_s)
            case Step.REBUILD:
                self._become(State.RELEASED)
                self._groups.rebuild(request.port, request.generation, waiting_s)
                self._become(State.REBUILT)
                self.generation = request.generation
            case Step.VERIFY:
                self._groups.verify(waiting_s)
            case Step.OPEN:
                self._open()
            case Step.FAIL:
                self.fail(GlowplugError.from_dict(request.error or {}))
        return {}

    def _hold(self, request: Request) -> dict[str, Any]:
        self._gate.close(request.deadline_s)
        try:
            census = self._groups.census(request.deadline_s)
            self._become(State.HELD)
        except BaseException:
            self._gate.open()
            raise
        self._has_taken_back = False
        return census

    def _open(self) -> None:
        if self.state is State.REBUILT:
            self._groups.settled()
        self._become(State.RUNNING)
        self._gate.open()

    def _become(self, state: State) -> None:
        """Raises Conflict for a step that ended after the watchdog had given up: it changes nothing."""
        with self._changed:
            if self.state is State.FAILED:
                raise Conflict(f"Rank {self.rank} had been given up.", remedy="Start the server again.")
            self.state = state

    # -- the watchdog ----------------------------------------------------------------------------------------

    def _until_next(self) -> float | None:
        """Seconds until something must happen; None when nothing has to."""
        if self.state in (State.RUNNING, State.FAILED):
            return None
        if not self._is_parted:
            return self._deadlines.gap_s + GRACE_S
        # The others give whoever coordinates the time to take all of them back.
        patience_s = 0.0 if self._unresumed is not None else 2 * self._deadlines.gap_s
        return self._deadlines.unresumed_s + patience_s

    def _watch(self, left_s: float | None) -> None:
        with self._changed:
            self._left_s = 0.0 if left_s is None else left_s
            if left_s is None or self.state is State.FAILED:
                self._watcher = None
            elif self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._count_down, name="glowplug-nccl-watch", daemon=True
                )
                self._watcher.start()
            self._changed.notify_all()

    def _count_down(self) -> None:
        """Counts what this process lived through: frozen it makes no ticks, and a copy goes on from there."""
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watcher is not me, _TICK_S)
                if self._watcher is not me:
                    return
                self._left_s -= _TICK_S
                if self._left_s > 0:
                    continue
                is_forgotten = self._is_parted and self.state is State.RELEASED
                if not is_forgotten or self._unresumed is None or self._has_taken_back:
                    self.fail(self._too_late())
                    return
                self._has_taken_back = True
                self._left_s = 2 * self._deadlines.gap_s
            _log.warning("rank %d: nobody resumed: taking the communicators back", self.rank)
            threading.Thread(target=self._unresumed, name="glowplug-nccl-resume", daemon=True).start()

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"Rank {self.rank} was {self.state} for too long: its communicators are given up.",
            remedy="The log of rank 0 tells where it stuck; start the server again.",
            rank=self.rank,
            state=self.state.value,
        )
