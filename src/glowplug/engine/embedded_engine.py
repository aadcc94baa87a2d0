"""Machines that people joined by hand (``glowplug cluster join``), as an engine.

Nobody rents or gives back anything here: each machine's own supervisor keeps its agent, and the list of
machines is the control plane's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from glowplug.control.messages import NodeStatus
from glowplug.engine.control_api import ControlApi
from glowplug.engine.fitting import check_fits
from glowplug.engine.port import Demand, Machine, MachineState
from glowplug.types.cluster import NodeState
from glowplug.types.errors import Conflict, NotFound

_STATES = {
    NodeState.READY: MachineState.RUNNING,
    NodeState.DRAINING: MachineState.DRAINING,
    NodeState.UNREACHABLE: MachineState.PENDING,
    NodeState.LOST: MachineState.GONE,
}
_REMEDY = "Join another machine: `glowplug cluster token` here, `glowplug cluster join` there."


class EmbeddedEngine:
    """See :class:`~glowplug.engine.port.Engine`. A machine's id is its node's name."""

    name = "embedded"

    def __init__(self, control: ControlApi) -> None:
        self._control = control

    def machines(self) -> list[Machine]:
        """The nodes of the cluster."""
        return [_machine(node) for _, node in sorted(self._control.nodes().items())]

    def reconcile(self) -> list[Machine]:
        """Look: on each machine its supervisor keeps the agent."""
        return self.machines()

    def ask(self, demands: Sequence[Demand]) -> None:
        """Raises ResourceExhausted for what the machines that have joined do not hold."""
        running = [machine for machine in self.machines() if machine.state is MachineState.RUNNING]
        check_fits(running, demands, _REMEDY)

    def drain(self, machine_id: str) -> None:
        """Place nothing new there, and move what runs there."""
        self._control.drain(self._machine(machine_id).node)

    def release(self, machine_id: str) -> None:
        """Take it out of the cluster; what is left there ends with `glowplug down` on it."""
        if self._control.nodes()[self._machine(machine_id).node].address is None:
            raise Conflict(
                f"The control plane runs on {machine_id}: it stays a machine.",
                remedy="`glowplug cluster drain` keeps replicas off it.",
            )
        self._control.remove(machine_id, force=True)

    def _machine(self, machine_id: str) -> Machine:
        for machine in self.machines():
            if machine.id == machine_id:
                return machine
        raise NotFound(f"There is no machine {machine_id!r}.", remedy="`glowplug cluster status` lists them.")


def _machine(node: NodeStatus) -> Machine:
    view = node.view
    return Machine(
        id=node.name,
        node=node.name,
        state=_STATES[node.state],
        why=node.why,
        cpus=view.cpus if view else 0.0,
        memory_bytes=view.memory_bytes if view else 0,
        gpus=len(view.gpus) if view else 0,
        labels=node.labels,
    )
