"""Machines: a cordoned node is drained here too, and one that Kubernetes has removed is removed.

``kubectl drain``, ``kubectl cordon`` and the autoscalers all mark a node before they empty it. What we have
drained for that is noted on the node, so that another operator knows what to undo, and nothing is undone that
a person has drained by ``glowplug cluster drain``.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from glowplug.control.messages import NodeStatus
from glowplug.engine.kubernetes.control_port import Control
from glowplug.engine.kubernetes.names import (
    AGENT,
    COMPONENT_LABEL,
    DRAINED_ANNOTATION,
    ENGINE_LABEL,
    NODES,
    PODS,
    node_name,
)
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.types.cluster import NodeState
from glowplug.types.errors import NotFound

log = logging.getLogger(__name__)

LEAVING_TAINTS = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "node.kubernetes.io/out-of-service",
    }
)
"""How those that remove machines say that one is about to go."""


def is_leaving(node: Object) -> bool:
    """Nothing new is to be put on this Kubernetes node."""
    spec = node.get("spec") or {}
    taints = {taint.get("key") for taint in spec.get("taints") or []}
    return bool(spec.get("unschedulable")) or not taints.isdisjoint(LEAVING_TAINTS)


class NodeKeeper:
    """Owned by one thread."""

    def __init__(self, api: ObjectApi, namespace: str, control: Control) -> None:
        self._api = api
        self._namespace = namespace
        self._control = control

    def look(self) -> None:
        """Compare the machines with the nodes, and tell the control plane what has changed."""
        machines = {one["metadata"]["name"]: one for one in self._api.list(NODES)}
        members = {one.name: one for one in self._control.nodes() if _is_ours(one)}
        for name in sorted(self._with_agents() & machines.keys()):
            member = members.get(node_name(name))
            if member is not None:
                self._follow(machines[name], member)
        there = {node_name(name) for name in machines}
        for member in members.values():
            if member.name not in there and member.state is NodeState.LOST:
                log.info("node %s has gone with its machine", member.name)
                with suppress(NotFound):
                    self._control.remove_node(member.name, force=True)

    def _with_agents(self) -> set[str]:
        pods = self._api.list(PODS, self._namespace, labels=f"{COMPONENT_LABEL}={AGENT}")
        return {pod.get("spec", {}).get("nodeName", "") for pod in pods}

    def _follow(self, machine: Object, member: NodeStatus) -> None:
        name = machine["metadata"]["name"]
        is_noted = DRAINED_ANNOTATION in (machine["metadata"].get("annotations") or {})
        # Noted before it is done, forgotten after it is undone: who dies in between has it done twice.
        if is_leaving(machine):
            if member.state is NodeState.READY:
                if not is_noted:
                    self._note(name, "true")
                self._control.drain_node(member.name, undo=False)
                log.info("node %s is drained: its machine takes nothing new", member.name)
        elif is_noted:
            self._control.drain_node(member.name, undo=True)
            self._note(name, None)
            log.info("node %s is used again", member.name)

    def _note(self, machine: str, value: str | None) -> None:
        self._api.patch(NODES, machine, {"metadata": {"annotations": {DRAINED_ANNOTATION: value}}})


def _is_ours(member: NodeStatus) -> bool:
    return member.labels.get(ENGINE_LABEL) == "kubernetes"
