"""New versions of the control plane: the old leader is ended once a new one stands by.

Only the leader is ready, so that the Service leads to it alone. A rolling update would therefore wait for
ever: it ends no pod that is ready before another one is. Here that is done for it, when a pod of the new
template answers. A leader that is told to end gives its lease up, and is succeeded within a second.
"""

from __future__ import annotations

import logging

from glowplug.engine.kubernetes.names import COMPONENT_LABEL, PODS
from glowplug.engine.kubernetes.object_api import Object, ObjectApi

log = logging.getLogger(__name__)

CONTROL = "control"
TEMPLATE_LABEL = "pod-template-hash"


class Handover:
    """Owned by one thread."""

    def __init__(self, api: ObjectApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    def look(self) -> None:
        """End a leader of an older template, if one of the newest can take over."""
        pods = [
            pod
            for pod in self._api.list(PODS, self._namespace, labels=f"{COMPONENT_LABEL}={CONTROL}")
            if not pod["metadata"].get("deletionTimestamp")
        ]
        if not pods:
            return
        newest = _template(max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))))
        if not any(_template(pod) == newest and _container(pod, "started") for pod in pods):
            return
        for pod in pods:
            if _template(pod) != newest and _container(pod, "ready"):
                name = pod["metadata"]["name"]
                log.info("control plane %s is of an older version, and makes way", name)
                self._api.delete(PODS, name, self._namespace)


def _template(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(TEMPLATE_LABEL, ""))


def _container(pod: Object, what: str) -> bool:
    """Whether its containers are ``started`` (answer at all) or ``ready`` (lead)."""
    containers = (pod.get("status") or {}).get("containerStatuses") or []
    return bool(containers) and all(one.get(what) for one in containers)
