"""Kubernetes as an engine: its nodes are the machines, the chart's DaemonSet keeps the agent on each.

Asking for machines is left to the cluster's own autoscaler, which is shown claims (``claims.py``) for as many
as are wanted of each Pool. Draining is a cordon: the operator sees it and tells the control plane
(``node_keeper.py``). A machine is released by keeping the agent off it and dropping its claim. The control
plane's own machine is none of them: it is a pod, and no node by it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from glowplug.engine.kubernetes.claims import Claim, Claims
from glowplug.engine.kubernetes.conditions import READY, Statement, conditions
from glowplug.engine.kubernetes.control_port import Control
from glowplug.engine.kubernetes.names import (
    AGENT,
    COMPONENT_LABEL,
    DAEMON_SETS,
    NODES,
    PODS,
    POOLS,
    RELEASED_LABEL,
    node_name,
)
from glowplug.engine.kubernetes.node_keeper import is_leaving
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.engine.kubernetes.objects import PoolStatusObject
from glowplug.engine.kubernetes.pool_object import FoundPool, found_pools
from glowplug.engine.kubernetes.pools import wanted_machines
from glowplug.engine.kubernetes.quantities import bytes_of, count_of
from glowplug.engine.port import Demand, Machine, MachineState
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, NotFound, Unavailable

log = logging.getLogger(__name__)

CLAIM_PREFIX = "claim/"
AS_WANTED = Statement("True", "AsWanted")
_LIMITED = "Limited"
_GPU_RESOURCE = "nvidia.com/gpu"
_CHIP_LABEL = "nvidia.com/gpu.product"
END_TIMEOUT_S = 130.0
"""The chart gives an agent's pod 120 s to end its replicas."""
_POLL_S = 0.5


class KubernetesEngine:
    """The Engine port over one namespace of one API server."""

    name = "kubernetes"

    def __init__(
        self,
        api: ObjectApi,
        namespace: str,
        control: Control,
        clock: Clock,
        *,
        image: str,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._control = control
        self._clock = clock
        self._pause = pause
        self._claims = Claims(api, namespace, image)

    def machines(self) -> list[Machine]:
        """Nodes that have, or should have, an agent; and claims that have found no node yet."""
        return self._machines(self._pools(), self._claims.all())

    def reconcile(self) -> list[Machine]:
        """The DaemonSet keeps the agents; here claims are made good, and Pools told how they stand."""
        selector = f"{COMPONENT_LABEL}={AGENT}"
        if not self._api.list(DAEMON_SETS, self._namespace, labels=selector):
            raise NotFound(
                f"Namespace {self._namespace} has no DaemonSet of agents.",
                remedy="Install the chart in deploy/helm/glowplug there.",
            )
        self._refuse_malformed()
        pools = self._pools()
        self._reach(pools, {pool.name: _standing(pool) for pool in pools})
        return self.machines()

    def ask(self, demands: Sequence[Demand]) -> None:
        """Pools hold what is wanted of them in their status: a successor of ours goes on from there."""
        pools = self._pools()
        wanted = wanted_machines({pool.name: pool.spec for pool in pools}, demands)
        limited = Statement("False", _LIMITED, f"{wanted.unmet} shares are beyond maxMachines.")
        self._reach(pools, wanted.machines, limited if wanted.unmet else AS_WANTED)

    def drain(self, machine_id: str) -> None:
        """Cordon it."""
        self._patch_node(machine_id, {"spec": {"unschedulable": True}})

    def release(self, machine_id: str) -> None:
        """End the agent there, and let the autoscaler have the machine: nothing claims it any more.

        Raises Unavailable when the agent has not ended after all the time that it has for that.
        """
        if not machine_id.startswith(CLAIM_PREFIX):
            # First of all: the DaemonSet puts no agent there again.
            self._patch_node(machine_id, {"metadata": {"labels": {RELEASED_LABEL: "true"}}})
            self._end_agent(machine_id)
            with suppress(NotFound):
                self._control.remove_node(node_name(machine_id), force=True)
        for claim in self._claims.all():
            if machine_id in (claim.node, CLAIM_PREFIX + claim.name):
                self._lower(claim.pool)
                self._claims.drop(claim.name)

    # -- inside ------------------------------------------------------------------------------------

    def _patch_node(self, machine_id: str, change: Mapping[str, object]) -> None:
        try:
            self._api.patch(NODES, machine_id, change)
        except NotFound as error:
            raise NotFound(
                f"Kubernetes has no node {machine_id!r}.", remedy="See `kubectl get nodes`."
            ) from error

    def _end_agent(self, machine_id: str) -> None:
        deadline_s = self._clock.monotonic() + END_TIMEOUT_S
        while pods := [pod for pod in self._agents() if _node_of(pod) == machine_id]:
            for pod in pods:
                if not _is_ending(pod):
                    self._api.delete(PODS, pod["metadata"]["name"], self._namespace)
            if self._clock.monotonic() >= deadline_s:
                raise Unavailable(
                    f"The agent on {machine_id} has not ended within {END_TIMEOUT_S:.0f} s.",
                    remedy="See `kubectl get pods -o wide`; it is ended once that machine's kubelet answers.",
                )
            self._pause(_POLL_S)

    def _agents(self) -> list[Object]:
        return self._api.list(PODS, self._namespace, labels=f"{COMPONENT_LABEL}={AGENT}")

    def _lower(self, name: str) -> None:
        """One machine less is wanted of this pool."""
        for pool in self._pools():
            if pool.name == name:
                wanted = max(pool.status.wanted - 1, pool.spec.min_machines)
                pool.tell(self._api, pool.status.model_copy(update={"wanted": wanted}))

    def _pools(self) -> list[FoundPool]:
        """Those that can be meant."""
        return found_pools(self._api.list(POOLS, self._namespace), self._namespace)[0]

    def _refuse_malformed(self) -> None:
        """Said of each in its status, and once in the log; its claims stay as they are."""
        for pool in found_pools(self._api.list(POOLS, self._namespace), self._namespace)[1]:
            said = {READY: Statement.of_error(pool.problem)}
            told = conditions(
                pool.status.conditions, said, generation=pool.generation, wall_s=self._clock.wall()
            )
            update = {"observed_generation": pool.generation, "conditions": told}
            if pool.tell(self._api, pool.status.model_copy(update=update)):
                log.warning("pool %s is refused: %s", pool.name, pool.problem)

    def _reach(
        self, pools: Sequence[FoundPool], wanted: Mapping[str, int], statement: Statement | None = None
    ) -> None:
        """Without ``statement`` what was said stays said. A pool whose claims the API server refuses is told
        so in its status, and keeps no other from its machines.
        """
        claims = self._claims.all()
        for pool in pools:
            count = wanted[pool.name]
            ours = [claim for claim in claims if claim.pool == pool.name]
            running = sum(bool(claim.node) for claim in ours)
            # What is wanted is written down before it is done: a successor finishes it.
            noted = pool.status.model_copy(update={"wanted": count})
            pool.tell(self._api, noted)
            said = {READY: statement or AS_WANTED} if statement or not _is_limited(pool) else {}
            problem = self._claim(pool, count, claims)
            if problem is not None:
                said = {READY: Statement.of_error(problem)}
            told = conditions(
                pool.status.conditions,
                said,
                generation=pool.generation,
                wall_s=self._clock.wall(),
            )
            status = PoolStatusObject(
                observed_generation=pool.generation,
                wanted=count,
                running=running,
                pending=max(0, count - running),
                conditions=told,
            )
            if replace(pool, status=noted).tell(self._api, status) and problem is not None:
                log.warning("pool %s: its claims are refused: %s", pool.name, problem)

    def _claim(self, pool: FoundPool, count: int, claims: list[Claim]) -> InvalidInput | None:
        """What the API server has against it."""
        try:
            self._claims.reach(pool.name, pool.spec, count, claims)
        except InvalidInput as problem:
            return problem
        return None

    def _machines(self, pools: Sequence[FoundPool], claims: Sequence[Claim]) -> list[Machine]:
        # One that is ending may have its successor beside it already, which counts.
        agents = {_node_of(pod): pod for pod in sorted(self._agents(), key=_is_ending, reverse=True)}
        machines = []
        for node in self._api.list(NODES):
            agent = agents.get(node["metadata"]["name"])
            if agent is not None or (_is_of_a_pool(node, pools) and not _is_released(node)):
                machines.append(_machine(node, agent))
        waiting = [
            Machine(CLAIM_PREFIX + claim.name, "", MachineState.PENDING, claim.why or "no node has it yet")
            for claim in claims
            if not claim.node
        ]
        return sorted([*machines, *waiting], key=lambda machine: machine.id)


def _standing(pool: FoundPool) -> int:
    """What is wanted of it as far as is written down, within what its object allows now."""
    return max(pool.spec.min_machines, min(pool.status.wanted, pool.spec.max_machines))


def _is_limited(pool: FoundPool) -> bool:
    """What was said when more was asked for than it may have stays said until less is."""
    return any(one.type == READY and one.reason == _LIMITED for one in pool.status.conditions)


def _node_of(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName", ""))


def _is_ending(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _is_of_a_pool(node: Object, pools: Sequence[FoundPool]) -> bool:
    labels = (node["metadata"].get("labels") or {}).items()
    return any(pool.spec.node_selector.items() <= labels for pool in pools)


def _is_released(node: Object) -> bool:
    return RELEASED_LABEL in (node["metadata"].get("labels") or {})


def _machine(node: Object, agent: Object | None) -> Machine:
    name = node["metadata"]["name"]
    labels = node["metadata"].get("labels") or {}
    capacity = (node.get("status") or {}).get("allocatable") or {}
    state, why = _state(node, agent)
    return Machine(
        id=name,
        node=node_name(name),
        state=state,
        why=why,
        cpus=count_of(capacity.get("cpu")),
        memory_bytes=bytes_of(capacity.get("memory")),
        gpus=int(count_of(capacity.get(_GPU_RESOURCE))),
        gpu_chip=labels.get(_CHIP_LABEL),
        labels=dict(labels),
    )


def _state(node: Object, agent: Object | None) -> tuple[MachineState, str]:
    """What Kubernetes says of it. Not ready is its kubelet's silence; our own leases are quicker."""
    ready = _condition(node)
    if ready is not None and ready.get("status") != "True":
        said = ready.get("message") or ready.get("reason") or ""
        return MachineState.GONE, f"its kubelet is silent: {said}"
    if is_leaving(node):
        return MachineState.DRAINING, "cordoned, or about to be removed by an autoscaler"
    if agent is None:
        return MachineState.PENDING, "the DaemonSet has put no agent there yet"
    if _is_ending(agent):
        return MachineState.PENDING, "its agent is ending"
    is_ready = _condition(agent) or {}
    if is_ready.get("status") != "True":
        return MachineState.PENDING, _why_not_ready(agent)
    return MachineState.RUNNING, ""


def _condition(body: Object) -> Object | None:
    found = (body.get("status") or {}).get("conditions") or []
    return next((one for one in found if one.get("type") == READY), None)


def _why_not_ready(pod: Object) -> str:
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting:
            return f"its agent: {waiting.get('reason', 'waits')} {waiting.get('message', '')}".strip()
    return "its agent is being started"
