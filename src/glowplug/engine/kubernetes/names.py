"""How things are called in a Kubernetes cluster. The chart in ``deploy/helm`` spells the same names."""

from __future__ import annotations

import hashlib
import re

GROUP = "glowplug.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

APPS = f"{API_VERSION}/apps"
REPLICAS = f"{API_VERSION}/replicas"
POOLS = f"{API_VERSION}/pools"
NODES = "v1/nodes"
PODS = "v1/pods"
SECRETS = "v1/secrets"
EVENTS = "v1/events"
DAEMON_SETS = "apps/v1/daemonsets"

FINALIZER = f"{GROUP}/undeploy"
APP_LABEL = f"{GROUP}/app"
SERVER_LABEL = f"{GROUP}/server"
POOL_LABEL = f"{GROUP}/pool"
MACHINE_ANNOTATION = f"{GROUP}/machine"
RELEASED_LABEL = f"{GROUP}/released"
"""On a Node: the agent's DaemonSet keeps away from it."""
REDEPLOY_ANNOTATION = f"{GROUP}/redeploy"
"""On an App: another value deploys it again, as a change of its spec does."""
DRAINED_ANNOTATION = f"{GROUP}/drained"
"""On a Node: the operator has told the control plane to drain it, and will say when that is over."""
COMPONENT_LABEL = "app.kubernetes.io/component"
AGENT = "agent"
ENGINE_LABEL = "engine"
"""What a machine says of itself when it joins: so that nobody removes one that is none of ours."""

_NODE_CHARACTERS = 48
_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_DIGEST_CHARACTERS = 8


def node_name(machine: str) -> str:
    """What the agent on this Kubernetes node joins as: its name, or one made of it that nobody else has.

    Nodes of Kubernetes may be called ``ip-10-0-0-1.eu.compute.internal``; ours have no dots, and 48
    characters.
    """
    if _NODE_NAME.fullmatch(machine):
        return machine
    digest = hashlib.sha256(machine.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    readable = re.sub(r"[^a-z0-9]+", "-", machine.partition(".")[0].lower()).strip("-")
    return f"{readable[: _NODE_CHARACTERS - _DIGEST_CHARACTERS - 1].strip('-')}-{digest}".strip("-")
