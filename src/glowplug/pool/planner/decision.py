"""What the planner wants done after a step. All of it may be done twice; none of it needs to be done at all.

What was wanted and has not happened is wanted again in the next decision: a crash between a decision and its
deeds loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from glowplug.pool.market.supply_log import SupplyRecord
from glowplug.pool.planner.solving import Solved
from glowplug.pool.planning import LeftOut, Situation
from glowplug.pool.program.plan import Plan
from glowplug.pool.providers.port import Order
from glowplug.pool.scarcity import ScarcityPrice


class Source(StrEnum):
    """Where this step's targets come from."""

    PLAN = "plan"
    """A program solved in this step."""
    LAST_PLAN = "last_plan"
    """The solver failed: what the last good plan said for this time."""
    FIXED_BUFFER = "fixed_buffer"
    """It failed for so long that the last plan is over: what is needed now, and a share more."""


class EventKind(StrEnum):
    """What happened, in the few kinds that metrics count."""

    ASKED = "asked"
    GRANTED = "granted"
    NOT_JOINED = "not_joined"
    """A machine that is fit did not become a node, by its own fault."""
    REFUSED = "refused"
    GIVEN_UP = "given_up"
    UNFIT = "unfit"
    DRAINING = "draining"
    KEPT = "kept"
    GIVEN_BACK = "given_back"
    LOST = "lost"
    RETURNED = "returned"
    """A machine that no open order explains: a second grant, a late one, an orphan."""
    LIMITED = "limited"
    """The spend limit held something back, or made something go."""
    SOLVER_FAILED = "solver_failed"
    CLOCK_JUMPED = "clock_jumped"
    BAD_INPUT = "bad_input"
    """Something that was seen cannot be used, and was left out."""
    SILENT = "silent"
    """A provider does not answer."""


@dataclass(frozen=True)
class Event:
    """For people and metrics. ``subject``: an order, a machine, a pool or a cloud."""

    at_s: float
    kind: EventKind
    subject: str
    words: str


@dataclass(frozen=True, eq=False)
class Decision:
    """Do this. ``requests``, ``cancellations`` (orders), ``terminations`` (machines) go to the providers.

    ``check``: machines whose health is to be checked; ``join``: those that are fit and are to become nodes;
    ``ready``: machines that take work now, and
    ``draining``: those that take no new work; whatever is in neither takes none at all.

    ``supply``: what the supply log is to remember. ``left_out``: pools that may not grow, and why.

    ``spend_usd_per_h``: what is rented, and what would be rented if everything that is asked for came: never
    above the limit, other than by machines that nobody asked for or whose price rose, and those are on their
    way out.

    ``situation`` and ``solved``: the program and its solution, if it was solved in this step; for reports.
    """

    at_s: float
    source: Source
    requests: tuple[Order, ...] = ()
    cancellations: tuple[str, ...] = ()
    terminations: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    scarcity: tuple[ScarcityPrice, ...] = ()
    supply: tuple[SupplyRecord, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    events: tuple[Event, ...] = ()
    rented_usd_per_h: float = 0.0
    spend_usd_per_h: float = 0.0
    situation: Situation | None = None
    solved: Solved | None = None

    @property
    def plan(self) -> Plan | None:
        """What the program says to do, if it was solved in this step."""
        return None if self.solved is None else self.solved.whole
