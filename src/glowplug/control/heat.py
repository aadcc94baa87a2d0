"""What the heat ladder decides, apart from what it does: pure rules about one replica.

The ladder and the reconciler follow them on real nodes, the simulator (``glowplug.simulator``) on a clock of
its own: so that a simulation says what this code does, and not what it was believed to do.
"""

from __future__ import annotations

from enum import StrEnum

from glowplug.types.spec import Scaling, ServerSpec


class StepDown(StrEnum):
    """The next colder state of a running replica."""

    PARK = "park"
    STOP = "stop"


def step_down(spec: ServerSpec, *, is_ready: bool, is_wanted: bool) -> StepDown:
    """For a replica that is not needed. ``is_wanted``: its version is active, and nobody stopped the server.

    A replica with a GPU would keep it from others, frozen: it is stopped.
    """
    may_park = spec.scaling.parked_window_s > 0 and spec.resources.gpu is None and is_ready and is_wanted
    return StepDown.PARK if may_park else StepDown.STOP


def has_cooled(scaling: Scaling, parked_s: float) -> bool:
    """Parked for its time: it is stopped."""
    return parked_s >= scaling.parked_window_s


def wake_order(*, is_pushed_out: bool, parked_at_s: float) -> tuple[bool, float]:
    """Of parked replicas the least is woken first: those in memory, of these the last to be parked."""
    return (is_pushed_out, -parked_at_s)


def shrink_order(
    *, is_starting: bool, suspect_until_s: float, created_at_s: float
) -> tuple[bool, float, float]:
    """Of idle replicas the least goes down first: those still starting help least, then suspects, then the
    oldest.
    """
    return (not is_starting, -suspect_until_s, created_at_s)


def spare_order(*, is_spare: bool, in_flight: int, created_at_s: float) -> tuple[bool, int, float]:
    """Of busy replicas that are too many the least is spared first: who is already, then who has least to
    do, then the oldest.
    """
    return (not is_spare, in_flight, created_at_s)
