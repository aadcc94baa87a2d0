"""Claims: for each machine that is wanted of a pool, a pod that does nothing but be there.

That is the one language that every autoscaler of Kubernetes speaks: a pod that finds no node makes it add
one, a node with a pod that must not be evicted is not taken away, and one without any is. A claim asks for
little, as what it holds a machine for is not seen by the scheduler; that no two are on one node is said by
anti-affinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glowplug.engine.kubernetes.names import COMPONENT_LABEL, PODS, POOL_LABEL
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.engine.kubernetes.objects import PoolObject
from glowplug.types.errors import Conflict

_CLAIM = "claim"


@dataclass(frozen=True)
class Claim:
    """One claim's pod. ``node`` is the machine that it holds; empty while there is none."""

    name: str
    pool: str
    node: str
    why: str


class Claims:
    """The claims' pods of a namespace. ``image`` needs ``sleep``: our own has it."""

    def __init__(self, api: ObjectApi, namespace: str, image: str) -> None:
        self._api = api
        self._namespace = namespace
        self._image = image

    def all(self) -> list[Claim]:
        """All that are not ending, by name."""
        pods = self._api.list(PODS, self._namespace, labels=f"{COMPONENT_LABEL}={_CLAIM}")
        return sorted(
            (_claim(pod) for pod in pods if not pod["metadata"].get("deletionTimestamp")),
            key=lambda claim: claim.name,
        )

    def reach(self, pool: str, spec: PoolObject, wanted: int, claims: list[Claim]) -> None:
        """Make or drop claims until there are so many; those that hold no machine are dropped first."""
        ours = [claim for claim in claims if claim.pool == pool]
        free = sorted(ours, key=lambda claim: (bool(claim.node), claim.name))
        for claim in free[: max(0, len(ours) - wanted)]:
            self.drop(claim.name)
        taken = {claim.name for claim in ours}
        for name in self._names(pool, taken, wanted - len(ours)):
            try:
                self._api.create(PODS, self._pod(name, pool, spec), self._namespace)
            except Conflict:
                continue  # it is ending, or somebody else made it: the next look sees

    def drop(self, name: str) -> None:
        """The machine is not wanted any more."""
        self._api.delete(PODS, name, self._namespace)

    def _names(self, pool: str, taken: set[str], count: int) -> list[str]:
        made: list[str] = []
        number = 0
        while len(made) < count:
            name = f"glowplug-claim-{pool}-{number}"
            if name not in taken:
                made.append(name)
            number += 1
        return made

    def _pod(self, name: str, pool: str, spec: PoolObject) -> Object:
        labels = {COMPONENT_LABEL: _CLAIM, "app.kubernetes.io/name": "glowplug", POOL_LABEL: pool}
        gpus: Mapping[str, str] = {"nvidia.com/gpu": str(spec.machine.gpus)} if spec.machine.gpus else {}
        small = {"cpu": "10m", "memory": "16Mi", **gpus}
        apart = {
            "labelSelector": {"matchLabels": {COMPONENT_LABEL: _CLAIM}},
            "topologyKey": "kubernetes.io/hostname",
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": labels,
                "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
            },
            "spec": {
                "nodeSelector": dict(spec.node_selector),
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
                "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65534,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": _CLAIM,
                        "image": self._image,
                        "command": ["sleep", "infinity"],
                        "resources": {"requests": small, "limits": small},
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
        }


def _claim(pod: Object) -> Claim:
    status = pod.get("status") or {}
    unmet = [one for one in status.get("conditions") or [] if one.get("status") == "False"]
    return Claim(
        name=pod["metadata"]["name"],
        pool=(pod["metadata"].get("labels") or {}).get(POOL_LABEL, ""),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        why=next((one.get("message", "") for one in unmet if one.get("type") == "PodScheduled"), ""),
    )
