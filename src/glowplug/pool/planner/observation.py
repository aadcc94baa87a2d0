"""What the planner is told in each step: all of it facts of this moment, none of them trusted.

Whoever runs the planner makes one of these: the loop from providers and files, a simulator from its world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.market.prices import PriceBook
from glowplug.pool.providers.port import Sighting
from glowplug.pool.providers.port import Verdict as Verdict


class Outcome(StrEnum):
    """How a call to a provider ended. A call that nobody knows about (a hang, a broken line) has none."""

    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True)
class Answer:
    """Of a provider to one call."""

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Observation:
    """The world as seen since the step before.

    ``listings``: of every cloud (:attr:`PoolId.cloud`) whose provider answered, all its machines; a cloud
    that is not in it is silent, and nothing is concluded from that. A listing must have been asked for after
    the calls of the last decision were made.

    ``requested``, ``cancelled`` by order, ``terminated`` by machine: answers to the calls that the last
    decisions wanted. ``health``: verdicts by machine. ``joined``: by machine, whether it has become a node,
    or could not by its own fault. ``calling``: orders whose request is being made right now and has no answer
    yet.

    ``heard``: machines whose own node agent was heard of, whatever the provider says; ``silent``: those that
    are nodes and were not heard of, by a control plane that answers; ``drained``: those whose nodes get no
    new work, whoever wants that. ``worth``: by machine, how much would be lost if it went, in any unit (busy
    slots, USD/h); what is not in it counts as idle.

    ``jumped_s``: by how much more the clock was set forward since the last step than time went by; a clock
    that went back is noticed by itself.

    ``demand``: one series for each entry of the file's ``demand``, in that order, until now;
    ``waiting_slot_s``: for how long one slot would work on what waits there, nothing where nobody knows.
    ``prices``: of
    every moment up to now at least; what lies after now is not looked at.
    """

    listings: Mapping[str, tuple[Sighting, ...]]
    demand: tuple[DemandSeries, ...]
    prices: PriceBook
    requested: Mapping[str, Answer] = field(default_factory=dict)
    cancelled: Mapping[str, Answer] = field(default_factory=dict)
    terminated: Mapping[str, Answer] = field(default_factory=dict)
    health: Mapping[str, Verdict] = field(default_factory=dict)
    heard: frozenset[str] = frozenset()
    worth: Mapping[str, float] = field(default_factory=dict)
    joined: Mapping[str, Answer] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()
    calling: frozenset[str] = frozenset()
    waiting_slot_s: tuple[float, ...] = ()
    jumped_s: float = 0.0
