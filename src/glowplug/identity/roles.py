"""The roles that certificates state, and the names of nodes.

A certificate of the cluster's authority says what its holder is in a URI of its subjectAltName: the control
plane, a node, or a node's router. A node's also has its name as a DNS name, which is what is checked by who
connects to it, so that no node can answer for another; the others have none, so that they can answer for no
node. A node's opens nothing; its router's, which is good for hours, opens replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glowplug.types.errors import Unauthorized
from glowplug.types.ids import check_name

CONTROL_URI = "glowplug:control"
ROUTER_LIFE_S = 6 * 3600.0
"""How long a router's certificate is good for. So long after it was removed a node may still reach the
others' replicas, and so long at most a router reaches them without a control plane.
"""
_NODE_URI = "glowplug:node/"
_ROUTER_URI = "glowplug:router/"


def node_uri(name: str) -> str:
    """What the certificate of the node ``name`` states."""
    return _NODE_URI + name


def router_uri(name: str) -> str:
    """What the certificate of the router on the node ``name`` states."""
    return _ROUTER_URI + name


def check_node_name(name: str) -> str:
    """Return ``name`` if a node may be called so. Raises InvalidInput."""
    return check_name(name, "node")


def require_control(certificate: Mapping[str, Any] | None) -> None:
    """Raises Unauthorized unless this certificate, as :mod:`ssl` tells it, is the control plane's."""
    uris = _uris(certificate)
    if CONTROL_URI not in uris:
        raise _refused("Only the control plane may talk to a node's agent and router.", uris)


def require_router(certificate: Mapping[str, Any] | None) -> None:
    """Raises Unauthorized unless it is the control plane's, or the router's of a node."""
    uris = _uris(certificate)
    if CONTROL_URI not in uris and not any(uri.startswith(_ROUTER_URI) for uri in uris):
        raise _refused("Only the control plane and routers may talk to replicas.", uris)


def _uris(certificate: Mapping[str, Any] | None) -> set[str]:
    return {value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"}


def _refused(message: str, uris: set[str]) -> Unauthorized:
    return Unauthorized(
        message,
        remedy="Ask the control plane; a node's own certificate opens nothing.",
        role=", ".join(sorted(uris))[:200] or "none",
    )
