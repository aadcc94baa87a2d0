"""What the planner remembers from step to step, and over restarts. Plain data that cannot be changed in
place.

``FleetState.to_json`` is the format of the ledger: fields are added, never given another meaning; a state of
a newer version is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from glowplug.pool.identity import PoolId
from glowplug.pool.scarcity import ScarcityPrice
from glowplug.types.errors import SystemUnfit

STATE_VERSION = 1


class Standing(StrEnum):
    """Where a machine of ours is: booting -> checking (-> joining) -> ready <-> draining -> returning."""

    BOOTING = "booting"
    CHECKING = "checking"
    JOINING = "joining"
    """It is fit, and becomes a node of the control plane."""
    READY = "ready"
    DRAINING = "draining"
    RETURNING = "returning"
    """It is to end, and the provider has not confirmed that it did. Its rent still counts."""

    @property
    def is_up(self) -> bool:
        """Whether it does work, or would if it were asked to."""
        return self in (Standing.READY, Standing.DRAINING)

    @property
    def is_coming(self) -> bool:
        """Whether it is on its way to be ready."""
        return self in (Standing.BOOTING, Standing.CHECKING, Standing.JOINING)


@dataclass(frozen=True)
class OpenOrder:
    """Asked for, and not come. Its rent counts as if it had. ``sends``: how often the provider was called.

    ``cancelled_at_s``: given up; it is open until the provider confirms.
    """

    id: str
    pool: PoolId
    gpu: str
    gpus: int
    usd_per_h: float
    asked_at_s: float
    sends: int = 0
    is_accepted: bool = False
    cancelled_at_s: float | None = None
    is_cancel_confirmed: bool = False

    @property
    def is_awaited(self) -> bool:
        """Whether it is still wanted."""
        return self.cancelled_at_s is None


@dataclass(frozen=True)
class HeldMachine:
    """A machine that exists, as far as we know. ``is_stray``: no open order explains it.

    ``since_s``: when it came to stand so. ``ready_at_s``: when it first was ready. ``missing_since_s``: since
    when its provider's listings lack it. ``is_end_confirmed``: the provider said that it ends.

    ``node``: what it is called as a node, from its first attempt to join on; ``failed_joins`` failed by its
    own fault. ``is_node_drained``: we have its node drained. ``silent_since_s``: since when the control plane
    has not heard of its node.
    """

    machine: str
    order: str
    pool: PoolId
    gpu: str
    gpus: int
    usd_per_h: float
    standing: Standing
    asked_at_s: float
    since_s: float
    ready_at_s: float | None = None
    missing_since_s: float | None = None
    address: str = ""
    hardware: str = ""
    why: str = ""
    is_stray: bool = False
    is_end_confirmed: bool = False
    node: str = ""
    failed_joins: int = 0
    is_node_drained: bool = False
    silent_since_s: float | None = None

    @property
    def place(self) -> str:
        """What the control plane calls it: the node that we made of it, or else its address."""
        return self.node or self.address


@dataclass(frozen=True)
class BadHardware:
    """Found unfit; not to be taken until ``until_s``."""

    hardware: str
    why: str
    until_s: float


@dataclass(frozen=True)
class LaterAsk:
    """Machines that a plan wants to ask for ``in_s`` after it was made."""

    pool: PoolId
    in_s: float
    machines: int


@dataclass(frozen=True)
class LastPlan:
    """What the last good plan says for the time after it: for when the solver fails.

    Asks up to ``done_until_s`` after it was made were carried out.
    """

    made_at_s: float
    done_until_s: float
    asks: tuple[LaterAsk, ...]


@dataclass(frozen=True)
class Surplus:
    """The fewest machines that every plan since ``since_s`` wanted gone from a pool."""

    since_s: float
    fewest: int


@dataclass(frozen=True)
class FleetState:
    """All of it. ``nonce`` makes orders of this ledger different from those of any other; ``ordered`` counts
    them. ``scarcity`` is of the last plan that was solved. Clouds are silent, pools limited by the spend
    limit.
    """

    fleet: str
    nonce: str
    version: int = STATE_VERSION
    stepped_at_s: float | None = None
    ordered: int = 0
    orders: dict[str, OpenOrder] = field(default_factory=dict)
    machines: dict[str, HeldMachine] = field(default_factory=dict)
    bad: dict[str, BadHardware] = field(default_factory=dict)
    surplus: dict[str, Surplus] = field(default_factory=dict)
    last_plan: LastPlan | None = None
    scarcity: tuple[ScarcityPrice, ...] = ()
    silent_since_s: dict[str, float] = field(default_factory=dict)
    limited_since_s: dict[str, float] = field(default_factory=dict)

    @property
    def order_prefix(self) -> str:
        """What every order's id begins with, and every node's name; a number follows."""
        return f"{self.fleet}-{self.nonce}-"

    def is_our_node(self, name: str) -> bool:
        """Whether it is, or was, the node of a machine of this ledger."""
        number = name.removeprefix(self.order_prefix)
        return number != name and number.isascii() and number.isdecimal()

    @property
    def rented_usd_per_h(self) -> float:
        """Of every machine that exists."""
        return sum(machine.usd_per_h for machine in self.machines.values())

    @property
    def spend_usd_per_h(self) -> float:
        """If everything that is asked for came as well."""
        return self.rented_usd_per_h + sum(order.usd_per_h for order in self.orders.values())

    def to_json(self) -> bytes:
        """For the ledger."""
        return _ADAPTER.dump_json(self)

    @staticmethod
    def from_json(data: bytes) -> FleetState:
        """From the ledger. Raises SystemUnfit for what we did not write."""
        try:
            state = _ADAPTER.validate_json(data)
        except ValidationError as problem:
            raise _unreadable(f"{problem.error_count()} of its fields are wrong") from problem
        if state.version > STATE_VERSION:
            raise _unreadable(f"it is of version {state.version}, and this Glowplug knows {STATE_VERSION}")
        return state


_ADAPTER = TypeAdapter(FleetState)


def shifted(state: FleetState, jump_s: float) -> FleetState:
    """The same state on a clock that was set forward by ``jump_s`` (back, if negative): every age stays."""

    def moved(moment_s: float | None) -> float | None:
        return None if moment_s is None else moment_s + jump_s

    last = state.last_plan
    return replace(
        state,
        stepped_at_s=moved(state.stepped_at_s),
        orders={
            name: replace(
                order, asked_at_s=order.asked_at_s + jump_s, cancelled_at_s=moved(order.cancelled_at_s)
            )
            for name, order in state.orders.items()
        },
        machines={
            name: replace(
                held,
                asked_at_s=held.asked_at_s + jump_s,
                since_s=held.since_s + jump_s,
                ready_at_s=moved(held.ready_at_s),
                missing_since_s=moved(held.missing_since_s),
                silent_since_s=moved(held.silent_since_s),
            )
            for name, held in state.machines.items()
        },
        bad={name: replace(bad, until_s=bad.until_s + jump_s) for name, bad in state.bad.items()},
        surplus={
            name: replace(surplus, since_s=surplus.since_s + jump_s)
            for name, surplus in state.surplus.items()
        },
        last_plan=None if last is None else replace(last, made_at_s=last.made_at_s + jump_s),
        silent_since_s={name: since_s + jump_s for name, since_s in state.silent_since_s.items()},
        limited_since_s={name: since_s + jump_s for name, since_s in state.limited_since_s.items()},
    )


def _unreadable(why: str) -> SystemUnfit:
    return SystemUnfit(
        f"The planner's ledger cannot be used: {why}.",
        remedy="Use the Glowplug that wrote it, or restore the ledger from a copy.",
    )
