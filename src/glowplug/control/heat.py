"""What the heat ladder decides, apart from what it does: pure rules about one replica.

The ladder and the reconciler follow them on real nodes, the simulator (``glowplug.simulator``) on a clock of
its own: so that a simulation says what this code does, and not what it was believed to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from glowplug.types.replica import ReplicaView, Stage, StartPath
from glowplug.types.spec import Scaling, ServerSpec

# Of one that was neither woken nor restored yet: nobody has measured anything.
_UNMEASURED_WAKE_S = 1.0
_UNMEASURED_START_S = 60.0


class StepDown(StrEnum):
    """The next colder state of a running replica."""

    PARK = "park"
    STOP = "stop"


def step_down(spec: ServerSpec, *, is_ready: bool, is_wanted: bool) -> StepDown:
    """For a replica that is not needed. ``is_wanted``: its version is active, and nobody stopped the server.

    A replica whose device memory cannot leave its GPU would keep it from others, frozen: it is stopped.
    """
    gives_gpu_back = spec.resources.gpu is None or spec.snapshot.gpu
    may_park = spec.scaling.parked_window_s > 0 and gives_gpu_back and is_ready and is_wanted
    return StepDown.PARK if may_park else StepDown.STOP


def wake_cost_s(spec: ServerSpec, view: ReplicaView) -> float:
    """How long its next caller waits if it gives its GPU up: as last measured, where it was."""
    if step_down(spec, is_ready=True, is_wanted=True) is StepDown.STOP:
        return _UNMEASURED_START_S if view.ready_at is None else max(view.ready_at - view.created_at, 0.0)
    if view.path is StartPath.PARKED:
        return sum(view.stages_s.values())
    return view.stages_s.get(Stage.DEVICE_INIT, _UNMEASURED_WAKE_S)


def keep_value(*, requests_per_s: float, cost_s: float) -> float:
    """What it is worth to leave a GPU with who has it: seconds of waiting that it saves callers a second."""
    return requests_per_s * cost_s


def weights(usd_per_h: Sequence[float | None]) -> list[float]:
    """What values that are compared are weighed by: what the room of each is worth, if all is known.

    A weighed value beside one that is not says nothing: without one price all weigh the same.
    """
    known = [usd for usd in usd_per_h if usd is not None]
    return known if len(known) == len(usd_per_h) else [1.0] * len(usd_per_h)


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
