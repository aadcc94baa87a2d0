"""Several ranks of ``torch.distributed`` through a snapshot: ``from glowplug import nccl``.

    nccl.enable()                                   # in every rank, before this:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=4)

Before memory is captured, rank 0 has all ranks hold between two collectives, and lets their communicators
go: suspended where NCCL can do that, else destroyed. In every copy it opens a rendezvous on loopback, where
all ranks make the same groups again, in the same order, and prove them. The program keeps its group objects,
and never sees more than a collective that took long. Inside Glowplug nothing else has to be called; elsewhere
``prepare`` and ``resume`` do the same, called on rank 0.

For GPUs, and wherever connections between ranks must not be in a snapshot. Ranks on the CPU that talk over
loopback are captured without: ``docs/nccl.md`` says who needs what, and what is refused.

Needs the standard library, and torch when it is enabled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from glowplug.nccl.coordinator import Counts
from glowplug.nccl.words import Deadlines, State

if TYPE_CHECKING:
    from glowplug.nccl.plugin import Plugin

__all__ = [
    "Deadlines",
    "State",
    "Status",
    "after_rebuild",
    "before_release",
    "enable",
    "prepare",
    "resume",
    "status",
]

Function = TypeVar("Function", bound="Callable[[], Any]")


@dataclass(frozen=True)
class Status:
    """What this rank knows. ``generation``: how often it was rebuilt; ``counts``: on rank 0 only."""

    state: State
    generation: int
    groups: tuple[str, ...]
    counts: Counts | None


def enable(deadlines: Deadlines | None = None) -> None:
    """Log every group that is made from now on, in this process. Called twice, the second call does nothing.

    Raises Conflict when there are groups already, SystemUnfit for a PyTorch of an unknown kind.
    """
    _plugin().enable(deadlines or Deadlines())


def prepare() -> None:
    """Rank 0: let all communicators go, on every rank. What is raised, and when: ``Coordinator.prepare``.

    Threads of the program that come to a collective afterwards wait until :func:`resume`.
    """
    _plugin().coordinated().prepare()


def resume() -> None:
    """Rank 0: make all communicators anew, on every rank, and let them go on. As ``Coordinator.resume``."""
    _plugin().coordinated().resume()


def before_release(function: Function) -> Function:
    """Run ``function`` on this rank before its groups are released, while all are still there.

    For communicators that PyTorch does not know (vLLM's own). All ranks run theirs at the same time and may
    use collectives. If it raises, the ranks go back.
    """
    _plugin().groups.before_release.append(function)
    return function


def after_rebuild(function: Function) -> Function:
    """Run ``function`` on this rank when its groups are back, before the program goes on.

    Destroyed communicators of NCCL have other addresses afterwards: capture CUDA graphs again here. All ranks
    run theirs at the same time and may use collectives. If it raises, the ranks are given up.
    """
    _plugin().groups.after_rebuild.append(function)
    return function


def status() -> Status:
    """Of this rank. Raises Conflict before there is a world."""
    plugin = _plugin()
    member, counts = plugin.joined()
    return Status(member.state, member.generation, plugin.groups.names(), counts)


def _plugin() -> Plugin:
    # Only here, as it imports torch: the protocol, and what checks it, need none.
    from glowplug.nccl.plugin import plugin

    return plugin
