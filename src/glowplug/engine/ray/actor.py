"""The class of the actors: one on each machine, restarted by Ray. It knows nothing of Ray."""

from __future__ import annotations

from glowplug.engine.ray.agent import AgentReport, AgentSettings, JoinOrder
from glowplug.engine.ray.keeper import AgentKeeper


class AgentActor:
    """Methods are called from several threads: a report is given while something is being stopped."""

    def __init__(self, settings: AgentSettings) -> None:
        self._keeper = AgentKeeper(settings)

    def report(self) -> AgentReport:
        """What is on this machine."""
        return self._keeper.report()

    def join(self, order: JoinOrder) -> None:
        """Join, and start what then is kept; done when a report says so."""
        self._keeper.join(order)

    def stop(self) -> None:
        """End the agent and its replicas."""
        self._keeper.stop()
