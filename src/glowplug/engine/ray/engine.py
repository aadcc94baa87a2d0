"""The engine ``ray``: an agent on every Ray node, kept by an actor there.

What it does follows each time from three lists: Ray's nodes, what the actors report, and the control plane's
nodes. It remembers little, so it may be killed at any point, and two at once do no harm: actors have names
that Ray gives once, and one supervisor can hold a state directory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from glowplug.control.messages import NodeStatus
from glowplug.engine.control_api import ControlApi
from glowplug.engine.counts import EngineCounts
from glowplug.engine.fitting import USABLE, check_fits, holds, left_over
from glowplug.engine.port import Demand, Machine, MachineState
from glowplug.engine.ray import names
from glowplug.engine.ray.agent import AgentReport, AgentSettings, JoinOrder
from glowplug.engine.ray.cluster import RayCluster, RayNode
from glowplug.engine.ray.released import Released
from glowplug.engine.ray.settings import RaySettings
from glowplug.types.clock import Clock
from glowplug.types.cluster import NodeState
from glowplug.types.errors import Conflict, GlowplugError, NotFound

log = logging.getLogger(__name__)

JOIN_TTL_S = 180.0
STOP_TIMEOUT_S = 95.0
FORGET_AFTER_S = 60.0
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 30.0
_SOME_OF_A_CHIP = 0.001


@dataclass
class _Known:
    """What is remembered of one Ray node. ``was_member``: the control plane has had its agent. ``was_told``:
    to join, and it has not said how that went."""

    report: AgentReport | None = None
    problem: GlowplugError | None = None
    token_id: str | None = None
    was_member: bool = False
    was_told: bool = False
    failures: int = 0
    pause_until_s: float = 0.0
    gone_since_s: float | None = None


class RayEngine:
    """See :class:`~glowplug.engine.port.Engine`. A machine's id is Ray's id of its node."""

    name = "ray"

    def __init__(
        self,
        cluster: RayCluster,
        control: ControlApi,
        settings: RaySettings,
        released: Released,
        counts: EngineCounts,
        clock: Clock,
        *,
        control_url: str,
        environment: Mapping[str, str],
    ) -> None:
        self._cluster = cluster
        self._control = control
        self._settings = settings
        self._released = released
        self._counts = counts
        self._clock = clock
        self._control_url = control_url
        self._environment = dict(environment)
        self._known: dict[str, _Known] = {}
        self._one_at_a_time = threading.Lock()

    def machines(self) -> list[Machine]:
        """Ray's nodes; those that are gone as long as Ray tells of them."""
        nodes = self._nodes()
        return self._machines(nodes, self._cluster.own_node(), self._control.nodes())

    def reconcile(self) -> list[Machine]:
        """An actor and an agent on every node that lives, a look at each, and an end to what is gone."""
        with self._one_at_a_time:
            nodes, own = self._nodes(), self._cluster.own_node()
            meant = [node for node in nodes if node.is_alive and node.id != own]
            meant = [node for node in meant if node.id not in self._released and self._is_due(node)]
            self._look(meant)
            # Asked after the actors: whoever has joined by their words is in it.
            members = self._control.nodes()
            self._let_go_of_removed(meant, members)
            for node in meant:
                self._keep(node, members)
            self._forget_lost(nodes, members)
            machines = self._machines(nodes, own, self._control.nodes())
        self._counts.seen(machines)
        return machines

    def ask(self, demands: Sequence[Demand]) -> None:
        """Hand it all to Ray's autoscaler. A cluster that we started ourselves has none.

        Raises ResourceExhausted for what such a cluster does not hold.
        """
        with self._one_at_a_time:
            usable = self._take_again(self.machines(), demands)
        if self._settings.starts_head:
            remedy = "Add a machine: `glowplug cluster join ADDRESS --engine ray` there."
            check_fits(usable, demands, remedy)
        bundles = [bundle for demand in demands for bundle in [_bundle(demand)] * demand.count]
        self._cluster.request(bundles, self._settings.only)

    def drain(self, machine_id: str) -> None:
        """The control plane moves what runs there; Ray puts nothing new there, for good."""
        node = self._find(machine_id)
        name = self._name(node, self._cluster.own_node(), self._control.nodes())
        try:
            self._control.drain(name)
        except NotFound:
            log.info("machine %s is to leave before its agent has joined", machine_id)
        if node.is_alive and node.id != self._cluster.own_node():
            self._cluster.drain(machine_id, "Glowplug is about to give it back.")

    def release(self, machine_id: str) -> None:
        """End the agent there, and let Ray have the node for others; its autoscaler takes back idle ones."""
        node = self._find(machine_id)
        if node.id == self._cluster.own_node():
            raise Conflict(
                "The control plane's own machine stays one.",
                remedy="`glowplug cluster drain` keeps replicas off it, `glowplug cluster down` ends it all.",
            )
        with self._one_at_a_time:
            self._released.add(machine_id, until_wanted=True)
            if problem := self._end([node]).get(machine_id):
                raise problem

    def release_all(self) -> dict[str, GlowplugError]:
        """End every agent, all at once, and all actors; by machine what kept some from ending."""
        with self._one_at_a_time:
            own = self._cluster.own_node()
            return self._end([node for node in self._nodes() if node.is_alive and node.id != own])

    def _take_again(self, machines: Sequence[Machine], demands: Sequence[Demand]) -> list[Machine]:
        """Let released machines have agents again where the others do not hold what is wanted; Ray would add
        none for what idle ones hold. Returns all that are or will be of use.
        """
        there = [one for one in machines if one.state in USABLE]
        usable = [one for one in there if one.id not in self._released]
        for machine in there:
            left = left_over(usable, demands)
            if self._released.is_until_wanted(machine.id) and any(holds(machine, one) for one in left):
                log.info("the machine %s is wanted again", machine.id)
                self._released.take_again(machine.id)
                self._of(machine.id).problem = None
                usable.append(machine)
        return usable

    # -- one machine -----------------------------------------------------------------------------------------

    def _look(self, nodes: Sequence[RayNode]) -> None:
        wanted = {node.id: self._agent_settings(node) for node in nodes}
        for node_id, report in self._cluster.reports(wanted).items():
            known = self._of(node_id)
            if isinstance(report, GlowplugError):
                self._failed(node_id, report)
                known.report = None
            elif report.settings != wanted[node_id]:
                log.info("the actor of %s is of other settings: it is made anew", node_id)
                self._cluster.kill_actor(node_id)
                known.report = None
            else:
                known.report = report

    def _keep(self, node: RayNode, members: Mapping[str, NodeStatus]) -> None:
        known = self._of(node.id)
        report = known.report
        if report is None or report.is_busy or node.id in self._released:
            return
        self._revoke(known)
        if report.problem is not None:
            known.problem = GlowplugError.from_dict(report.problem)
            if known.was_told:  # one failure each time, however often it is reported
                self._failed(node.id, known.problem)
            self._clear_the_name(known, members)
        known.was_told = False
        if self._is_member(report, members):
            known.was_member = True
            if report.problem is None:
                known.problem, known.failures = None, 0
        elif self._clock.monotonic() >= known.pause_until_s:
            self._join(node)

    def _join(self, node: RayNode) -> None:
        known = self._of(node.id)
        try:
            token = self._control.new_join_token(JOIN_TTL_S)
            known.token_id = token.id
            self._cluster.join(node.id, JoinOrder(token.token or ""))
        except GlowplugError as error:
            self._failed(node.id, error)
            self._revoke(known)
        else:
            known.was_told = True
            self._counts.joined()
            log.info("the machine %s (%s) is to join", names.node_name(node), node.id)

    def _is_member(self, report: AgentReport, members: Mapping[str, NodeStatus]) -> bool:
        return report.node in members and report.control_url == self._control_url

    def _let_go_of_removed(self, nodes: Iterable[RayNode], members: Mapping[str, NodeStatus]) -> None:
        """``cluster remove`` takes a machine out: its agent ends, and none is started there again."""
        for node in nodes:
            known = self._of(node.id)
            report = known.report
            if known.was_member and report is not None and report.node not in members:
                log.info("node %s was removed from the cluster: its agent ends", report.node)
                known.was_member = False
                self._released.add(node.id)
                known.problem = self._end([node]).get(node.id)

    def _clear_the_name(self, known: _Known, members: Mapping[str, NodeStatus]) -> None:
        """An address came back with another machine: its name is free once who had it is lost."""
        name = known.report.settings.name if known.report else ""
        before = members.get(name)
        if isinstance(known.problem, Conflict) and before is not None and before.state is NodeState.LOST:
            self._remove(name)
            known.pause_until_s = 0.0

    def _end(self, nodes: Sequence[RayNode]) -> dict[str, GlowplugError]:
        left: dict[str, GlowplugError] = {}
        ended = self._cluster.stop_agents([node.id for node in nodes], STOP_TIMEOUT_S)
        for node in nodes:
            known = self._of(node.id)
            if problem := ended.get(node.id):
                left[node.id] = problem
                continue
            self._cluster.kill_actor(node.id)
            name = known.report.node if known.report and known.report.node else names.node_name(node)
            self._remove(name)
            known.report, known.was_member = None, False
        return left

    def _remove(self, name: str) -> None:
        try:
            self._control.remove(name, force=True)
        except NotFound:
            return
        except GlowplugError as error:
            log.warning("node %s stays in the control plane's list: %s", name, error)

    def _forget_lost(self, nodes: Iterable[RayNode], members: Mapping[str, NodeStatus]) -> None:
        """A machine that Ray and the control plane have both lost does not come back under that id."""
        alive = {names.node_name(node) for node in nodes if node.is_alive}
        for node in nodes:
            if node.is_alive:
                continue
            known, name = self._of(node.id), names.node_name(node)
            known.gone_since_s = known.gone_since_s or self._clock.monotonic()
            member = members.get(name)
            is_long_gone = self._clock.monotonic() - known.gone_since_s >= FORGET_AFTER_S
            if is_long_gone and name not in alive and member and member.state is NodeState.LOST:
                log.info("node %s is forgotten: Ray says %s", name, node.why or "that it is dead")
                self._remove(name)

    def _failed(self, node_id: str, error: GlowplugError) -> None:
        known = self._of(node_id)
        log.warning("no agent on %s: %s", node_id, error)
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(known.failures, 10))
        known.problem = error
        known.failures += 1
        known.pause_until_s = self._clock.monotonic() + pause_s
        self._counts.failed()

    def _is_due(self, node: RayNode) -> bool:
        known = self._of(node.id)
        # One that answers is looked at each time; one that does not costs seconds, so not so often.
        return known.report is not None or self._clock.monotonic() >= known.pause_until_s

    def _revoke(self, known: _Known) -> None:
        if known.token_id is None:
            return
        try:
            self._control.revoke_join_token(known.token_id)
        except NotFound:
            pass
        except GlowplugError as error:
            log.warning("a join token ends by itself only, within %g s: %s", JOIN_TTL_S, error)
        known.token_id = None

    def _of(self, node_id: str) -> _Known:
        return self._known.setdefault(node_id, _Known())

    # -- what there is ---------------------------------------------------------------------------------------

    def _nodes(self) -> list[RayNode]:
        chosen = [node for node in self._cluster.nodes() if names.is_chosen(node, self._settings.only)]
        return sorted(chosen, key=lambda node: node.id)

    def _find(self, machine_id: str) -> RayNode:
        for node in self._nodes():
            if node.id == machine_id:
                return node
        raise NotFound(
            f"Ray knows no machine {machine_id!r}.", remedy="`glowplug cluster status` lists them."
        )

    def _agent_settings(self, node: RayNode) -> AgentSettings:
        name = names.node_name(node)
        return AgentSettings(
            name=name,
            folder=names.folder(self._settings.node_state, name),
            control_url=self._control_url,
            advertise=node.address,
            gateway_port=self._settings.gateway_port,
            labels=names.labels(node),
            environment=self._environment,
            serve=self._settings.serve,
        )

    def _name(self, node: RayNode, own: str, members: Mapping[str, NodeStatus]) -> str:
        if node.id == own:
            return next((member.name for member in members.values() if member.address is None), "")
        report = self._of(node.id).report
        return report.node if report and report.node else names.node_name(node)

    def _machines(
        self, nodes: Sequence[RayNode], own: str, members: Mapping[str, NodeStatus]
    ) -> list[Machine]:
        found = []
        for node in nodes:
            name = self._name(node, own, members)
            state, why = self._state(node, members.get(name), is_own=node.id == own)
            found.append(
                Machine(
                    id=node.id,
                    node=name,
                    state=state,
                    why=why,
                    cpus=node.cpus,
                    memory_bytes=node.memory_bytes,
                    gpus=node.gpus,
                    gpu_chip=node.gpu_chip,
                    labels=names.labels(node),
                )
            )
        return found

    def _state(self, node: RayNode, member: NodeStatus | None, *, is_own: bool) -> tuple[MachineState, str]:
        known = self._of(node.id)
        of_control = f"{member.state.value}, {member.why}" if member and member.why else ""
        if not node.is_alive:
            runs_on = "; its agent runs on" if member and member.state is NodeState.READY else ""
            return MachineState.GONE, f"Ray has lost it: {node.why or 'no reason given'}{runs_on}"
        if node.id in self._released:
            return MachineState.PENDING, str(known.problem or "it was released: no agent is started here")
        if member is not None and member.state is NodeState.DRAINING:
            return MachineState.DRAINING, of_control
        if is_own or (member is not None and member.state is NodeState.READY):
            return MachineState.RUNNING, of_control
        if known.problem is not None:
            return MachineState.PENDING, str(known.problem)
        return MachineState.PENDING, of_control or "its agent has not joined yet"


def _bundle(demand: Demand) -> dict[str, float]:
    bundle: dict[str, float] = {}
    if demand.cpus:
        bundle["CPU"] = demand.cpus
    if demand.memory_bytes:
        bundle["memory"] = float(demand.memory_bytes)
    if demand.gpus:
        bundle["GPU"] = float(demand.gpus)
        if demand.gpu_chip is not None:
            bundle[f"accelerator_type:{demand.gpu_chip}"] = _SOME_OF_A_CHIP
    return bundle
