"""What an engine is: where machines come from, and what keeps an agent on each.

An engine knows machines, and nothing of replicas. Whatever it is, the agent that it starts on a machine joins
as a node (``docs/cluster.md``), and from then on the control plane places, stops, moves and watches replicas
by the agent's own API, with its own leases of seconds. So all engines share one way to do that, and what they
differ in stays small: who starts an agent again, who is asked for machines, who is told that one leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class MachineState(StrEnum):
    """What an engine says of a machine. The control plane's own view of its node is ``NodeState``.

    ``pending``: asked for, or its agent has not joined. ``running``: its agent is kept running. ``draining``:
    the engine has been told to take nothing new there. ``gone``: the engine has lost it.
    """

    PENDING = "pending"
    RUNNING = "running"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True)
class Machine:
    """One machine. ``id`` is the engine's own name for it, ``node`` what its agent joins as."""

    id: str
    node: str
    state: MachineState
    why: str = ""
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_chip: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Demand:
    """``count`` machines, or shares of one, that hold at least this."""

    count: int
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_chip: str | None = None


class Engine(Protocol):
    """Machines of one kind of cluster. Calls block, have deadlines of their own, and may be repeated.

    All raise Unavailable when the engine does not answer, with what it said; NotFound for a machine it does
    not know; ResourceExhausted when it is asked for what it can never have.
    """

    @property
    def name(self) -> str:
        """``embedded``, ``ray`` or ``kubernetes``."""
        ...

    def machines(self) -> list[Machine]:
        """All machines, by id; those that are gone as long as the engine tells of them."""
        ...

    def reconcile(self) -> list[Machine]:
        """Make sure that an agent is kept on every machine meant for one, and look."""
        ...

    def ask(self, demands: Sequence[Demand]) -> None:
        """All that is wanted from now on, in place of what was asked before; the engine adds machines.

        Those that were released and are still there come first.
        """
        ...

    def drain(self, machine_id: str) -> None:
        """The machine is about to leave: its agent may finish, nothing new is put there."""
        ...

    def release(self, machine_id: str) -> None:
        """Stop the agent there, and give the machine back where the engine rents it."""
        ...
