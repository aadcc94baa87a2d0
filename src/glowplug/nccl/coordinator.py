"""The two-phase commit over ranks, on rank 0: everybody holds before anybody releases, everybody
verifies before anybody goes on, and whatever fails leads back to where all run, or to where all know that
they do not.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from glowplug.nccl.line import Line
from glowplug.nccl.member import GRACE_S, LOOPBACK
from glowplug.nccl.words import Deadlines, Reply, Request, Step
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    InvalidInput,
    ReplicaFailed,
    SystemUnfit,
)

_CONNECT_S = 5.0
_SLACK_S = GRACE_S - 2.0
"""An answer may take this much longer than its step: less than the rank's own watchdog waits."""
_PAUSE_S = 0.05

_log = logging.getLogger("glowplug.nccl")


class Left(StrEnum):
    """How an operation that failed left the ranks: going on as before, still released, or given up."""

    RUNNING = "running"
    RELEASED = "released"
    FAILED = "failed"


@dataclass(frozen=True)
class Peer:
    """A rank: where it listens on loopback, and where it is (``support.place``)."""

    rank: int
    port: int
    place: str


@dataclass
class _Reached:
    """A rank that is spoken to. Lost: it ended, or owes an answer, and cannot be asked anything any more."""

    rank: int
    line: Line
    is_lost: bool = False
    is_held: bool = False

    def ask(self, request: Request) -> GlowplugError | None:
        try:
            self.line.send(request.to_message(), _CONNECT_S)
        except OSError as problem:
            return self._lose(request.step, str(problem))
        return None

    def answer(self, step: Step, deadline_s: float) -> dict[str, Any] | GlowplugError:
        try:
            message = self.line.receive(deadline_s)
            if message is None:
                return self._lose(step, "its connection closed")
            reply = Reply.from_message(message)
        except DeadlineExceeded:
            self.is_lost = True
            return DeadlineExceeded(
                f"Rank {self.rank} did not {step} in time.",
                remedy="Its log tells what it waits for.",
                rank=self.rank,
                step=step.value,
            )
        except InvalidInput as error:
            self.is_lost = True
            return error
        return reply.error if reply.error is not None else dict(reply.result or {})

    def _lose(self, step: Step, how: str) -> ReplicaFailed:
        self.is_lost = True
        return _ended(self.rank, step, how)


@dataclass
class Counts:
    """How often things happened since this process started; a copy inherits them."""

    prepared: int = 0
    resumed: int = 0
    rolled_back: int = 0
    given_up: int = 0


@dataclass
class Coordinator:
    """Prepares and resumes all ranks. ``rendezvous`` opens a store on loopback for a rebuild: its port."""

    peers: Sequence[Peer]
    token: str
    deadlines: Deadlines
    rendezvous: Callable[[float], int]
    generation: int = 0
    is_released: bool = False
    counts: Counts = field(default_factory=Counts)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self) -> None:
        """Quiesce all ranks and release their communicators; afterwards none has a connection to another.

        Raises, with ``details["left"]``: SystemUnfit for what cannot be captured, Conflict when ranks are in
        the middle of a collective, ReplicaFailed or DeadlineExceeded for a rank that failed, ended or hung.
        """
        self._check_places()
        with self._alone():
            if self.is_released:
                raise Conflict(
                    "The communicators are released already.",
                    remedy="Resume first.",
                    left=Left.RELEASED.value,
                )
            reached: list[_Reached] = []
            try:
                self._connect(reached)
                self._hold(reached)
                self.is_released = True
                self._demand(reached, Step.RELEASE)
                self._part(reached)
            except GlowplugError as error:
                self._go_back(reached, error)
                raise
            finally:
                _close(reached)
            self.counts.prepared += 1

    def resume(self) -> None:
        """Rebuild the communicators of all ranks, verify them, and let the ranks go on.

        Raises Conflict when nothing is released; else as :meth:`prepare`, and then everything is given up.
        """
        with self._alone():
            if not self.is_released:
                raise Conflict("Nothing is released.", remedy="Prepare first.")
            reached: list[_Reached] = []
            try:
                self._connect(reached)
                self._rebuild(reached)
                self._part(reached)
            except GlowplugError as error:
                self._give_up(reached, error)
                raise
            finally:
                _close(reached)
            self.counts.resumed += 1

    # -- the phases ------------------------------------------------------------------------------------------

    def _hold(self, reached: list[_Reached]) -> None:
        """Stop all ranks between the same two collectives; a program that is at work gets several tries."""
        ends_s = time.monotonic() + self.deadlines.hold_s
        while True:
            answers = self._ask_all(reached, Step.HOLD)
            for rank, answer in zip(reached, answers, strict=True):
                rank.is_held = not isinstance(answer, GlowplugError)
            problem = _worst(reached, answers) or disagreement(
                {rank.rank: one for rank, one in zip(reached, answers, strict=True) if isinstance(one, dict)}
            )
            if problem is None:
                return
            is_hopeless = not problem.details.get("is_busy") or any(rank.is_lost for rank in reached)
            if is_hopeless or time.monotonic() >= ends_s:
                raise problem
            self._let_go(reached)
            time.sleep(_PAUSE_S)

    def _let_go(self, reached: list[_Reached]) -> None:
        held = [rank for rank in reached if rank.is_held]
        self._demand(held, Step.OPEN)
        for rank in held:
            rank.is_held = False

    def _rebuild(self, reached: list[_Reached]) -> None:
        port = self.rendezvous(self.deadlines.rebuild_s)
        self.generation += 1
        self._demand(reached, Step.REBUILD, port)
        self._demand(reached, Step.VERIFY)
        self._demand(reached, Step.OPEN)
        self.is_released = False

    def _go_back(self, reached: list[_Reached], error: GlowplugError) -> None:
        """After a preparation failed: all go on as before, or all are given up."""
        try:
            if len(reached) < len(self.peers) or any(rank.is_lost for rank in reached):
                raise error
            if self.is_released:
                self._rebuild(reached)
            else:
                self._let_go(reached)
            self._part(reached)
        except GlowplugError:
            self._give_up(reached, error)
        else:
            self.counts.rolled_back += 1
            error.details["left"] = Left.RUNNING.value

    def _give_up(self, reached: list[_Reached], error: GlowplugError) -> None:
        """Nothing leads back: whoever still listens is told, and whoever does not sees its connection end."""
        self.counts.given_up += 1
        error.details["left"] = Left.FAILED.value
        _log.error("the ranks are given up: %s", error)
        self._ask_all([rank for rank in reached if not rank.is_lost], Step.FAIL, error=error)

    def _part(self, reached: list[_Reached]) -> None:
        """No connection is open when this returns: none must be at the freeze."""
        self._demand(reached, Step.END)

    # -- asking ----------------------------------------------------------------------------------------------

    def _connect(self, reached: list[_Reached]) -> None:
        """Raises ReplicaFailed for the first rank that does not listen, when all were tried."""
        missing: ReplicaFailed | None = None
        for peer in self.peers:
            try:
                connection = socket.create_connection((LOOPBACK, peer.port), _CONNECT_S)
            except OSError as problem:
                missing = missing or _ended(peer.rank, None, str(problem))
                continue
            reached.append(_Reached(peer.rank, Line(connection)))
        if missing is not None:
            raise missing

    def _demand(self, reached: Sequence[_Reached], step: Step, port: int = 0) -> None:
        """Ask all and wait for all; then raise the worst error."""
        problem = _worst(reached, self._ask_all(reached, step, port))
        if problem is not None:
            raise problem

    def _ask_all(
        self,
        reached: Sequence[_Reached],
        step: Step,
        port: int = 0,
        error: GlowplugError | None = None,
    ) -> list[dict[str, Any] | GlowplugError]:
        """All at once, as steps are collective; the deadline is one for all."""
        deadline_s = self.deadlines.of(step)
        told = None if error is None else error.to_dict()
        request = Request(self.token, step, deadline_s, port, self.generation, told)
        unsent = [rank.ask(request) for rank in reached]
        # Closing the gate and waiting for what is in flight may take a drain each.
        ends_s = time.monotonic() + deadline_s * (2 if step is Step.HOLD else 1) + _SLACK_S
        return [
            problem or rank.answer(step, max(ends_s - time.monotonic(), 0.01))
            for rank, problem in zip(reached, unsent, strict=True)
        ]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise Conflict("The ranks are being prepared or resumed right now.", remedy="Wait for its end.")
        try:
            yield
        finally:
            self._busy.release()

    def _check_places(self) -> None:
        home = next(peer.place for peer in self.peers if peer.rank == 0)
        away = [peer.rank for peer in self.peers if peer.place != home]
        if away:
            raise SystemUnfit(
                f"Ranks {', '.join(map(str, away))} run on another host, or in another network namespace, "
                "than rank 0.",
                remedy="A snapshot is of one container: keep all ranks in it, or leave glowplug.nccl out.",
                unsupported=["other hosts"],
                ranks=away,
                left=Left.RUNNING.value,
            )


def disagreement(censuses: Mapping[int, Mapping[str, Any]]) -> GlowplugError | None:
    """Whether ranks are between different collectives, or do not know the same groups; None if all agree.

    A census is ``{group: {"begun": collectives so far, "ranks": members}}``.
    """
    seen: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for rank, census in censuses.items():
        for name, mine in census.items():
            other, theirs = seen.setdefault(name, (rank, mine))
            if mine["ranks"] != theirs["ranks"]:
                return ReplicaFailed(
                    f"Ranks {other} and {rank} do not agree who is in the group {name!r}: "
                    f"{theirs['ranks']}, {mine['ranks']}.",
                    remedy="All ranks must make their groups in the same order.",
                    group=name,
                )
            if mine["begun"] != theirs["begun"]:
                return Conflict(
                    f"Ranks {other} and {rank} are between different collectives of the group {name!r}: "
                    f"{theirs['begun']} and {mine['begun']} begun.",
                    remedy="Let ranks wait for work outside of collectives.",
                    group=name,
                    is_busy=True,
                )
    for name, (_, census) in seen.items():
        absent = [rank for rank in census["ranks"] if name not in censuses.get(rank, {})]
        if absent:
            return Conflict(
                f"Ranks {absent} do not have the group {name!r} (yet).",
                remedy="Make and destroy groups before the server is ready.",
                group=name,
                is_busy=True,
            )
    return None


def _worst(
    reached: Sequence[_Reached], answers: Sequence[dict[str, Any] | GlowplugError]
) -> GlowplugError | None:
    """The error to tell: that of a lost rank explains those of the others, and busy ranks come last."""
    errors = [
        (not rank.is_lost, bool(answer.details.get("is_busy")), rank.rank, answer)
        for rank, answer in zip(reached, answers, strict=True)
        if isinstance(answer, GlowplugError)
    ]
    return min(errors, key=lambda one: one[:3])[3] if errors else None


def _ended(rank: int, step: Step | None, how: str) -> ReplicaFailed:
    during = f"during {step}" if step is not None else "before it was asked anything"
    return ReplicaFailed(
        f"Rank {rank} ended {during} ({how}).",
        remedy="Its log tells why; start the server again.",
        rank=rank,
        step=step.value if step is not None else None,
    )


def _close(reached: Sequence[_Reached]) -> None:
    for rank in reached:
        rank.line.close()
