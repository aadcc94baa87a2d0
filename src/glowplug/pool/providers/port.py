"""The port to whoever gives machines: a cloud, a list of one's own, a simulation of either.

Nothing that a provider says is taken for granted. A grant may come late, twice, or never; a listing may lack
a machine or show one that nobody asked for; any call may hang. The planner is built for that; what it needs
is that every order and machine carries the id that we gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from glowplug.pool.identity import PoolId
from glowplug.pool.providers.shell import Shell
from glowplug.types.errors import Unavailable


class MachineState(StrEnum):
    """What a provider says of a machine: pending -> starting -> up -> ending -> gone, or pending -> refused.

    Whatever is neither gone nor refused counts as paid for.
    """

    PENDING = "pending"
    """It waits for capacity."""
    STARTING = "starting"
    UP = "up"
    """It can be reached."""
    ENDING = "ending"
    GONE = "gone"
    """It ended, by itself or because it was told to."""
    REFUSED = "refused"
    """It will never come: quota or capacity. ``reason`` says which."""


class RequestRefused(Unavailable):
    """The provider says no, and nothing was made: quota, capacity, an unknown machine type."""


@dataclass(frozen=True)
class Order:
    """One machine, asked for. ``id`` is unique for ever and becomes a tag, as ``fleet`` does.

    ``avoid``: hardware (:attr:`Sighting.hardware`) that was found unfit; whoever can choose, chooses other.
    """

    id: str
    fleet: str
    pool: PoolId
    gpu: str
    gpus: int
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sighting:
    """A machine in a provider's listing.

    ``machine``: the provider's name for it, unique among all providers' machines for ever. ``order``: the tag
    it was made with; empty if the provider lost it. ``address``: where it can be reached, once it is up.
    ``hardware``: the same whenever the same piece of iron is given out again; empty where nobody can tell.
    """

    machine: str
    order: str
    pool: PoolId
    state: MachineState
    address: str = ""
    hardware: str = ""
    reason: str = ""


class Provider(Protocol):
    """One provider. Calls block, are made from one thread at a time, and may be given up (a call that hangs
    is left behind): each holds its own deadline of ``timeout_s``, as far as it can.

    Every call may be made again with the same arguments: after a crash nobody knows whether it was made.
    """

    name: str

    def request(self, order: Order, timeout_s: float) -> None:
        """Ask for the machine, with ``order.id`` and ``order.fleet`` as its tags; it comes later, if at all.

        The same id must not make a second machine. Raises RequestRefused when none was and none will be made;
        any other GlowplugError means that nobody knows.
        """
        ...

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        """Everything with the fleet's tag that exists or is pending, and, for a while, what was refused or
        ended.

        All of it or an error, never a part. Raises Unavailable, DeadlineExceeded.
        """
        ...

    def terminate(self, machine: str, timeout_s: float) -> None:
        """End it; returns when that is certain to happen. Quiet for one that is ended or never was. Raises
        GlowplugError.
        """
        ...

    def cancel(self, order: str, timeout_s: float) -> None:
        """Whatever was or will be made of this order is to end. Quiet for one never seen. Raises
        GlowplugError.
        """
        ...


@dataclass(frozen=True)
class Verdict:
    """Of the health check of a machine: ``reason`` says what is wrong, if it is unfit."""

    is_fit: bool
    reason: str = ""


class Inspector(Protocol):
    """Checks machines before they take work."""

    def inspect(self, machine: str, address: str, gpu: str, gpus: int, timeout_s: float) -> Verdict:
        """A verdict within ``timeout_s``; a machine that does not answer is unfit. Blocks; never raises for
        what is wrong with the machine. Raises Unavailable while nobody can tell: it is asked again.
        """
        ...


@dataclass(frozen=True)
class Supplier:
    """Who gives machines of one cloud, and who checks them.

    ``shell_of``: commands on a machine, by its name and address; None where machines exist on paper only.
    ``labels``: what is to be known of nodes that its machines become.
    """

    provider: Provider
    inspector: Inspector
    shell_of: Callable[[str, str], Shell] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
