"""The roles that certificates state, and the names of nodes.

A certificate of the cluster's authority says what its holder is in a URI of its subjectAltName: the control
plane or a node. A node's also has its name as a DNS name, which is what control checks when it connects, so
that no node can answer for another; control's has none, so that it can answer for no node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glowplug.types.errors import Unauthorized
from glowplug.types.ids import check_name

CONTROL_URI = "glowplug:control"
_NODE_URI = "glowplug:node/"


def node_uri(name: str) -> str:
    """What the certificate of the node ``name`` states."""
    return _NODE_URI + name


def check_node_name(name: str) -> str:
    """Return ``name`` if a node may be called so. Raises InvalidInput."""
    return check_name(name, "node")


def require_control(certificate: Mapping[str, Any] | None) -> None:
    """Raises Unauthorized unless this certificate, as :mod:`ssl` tells it, is the control plane's."""
    uris = {value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"}
    if CONTROL_URI not in uris:
        raise Unauthorized(
            "Only the control plane may talk to a node's gateway.",
            remedy="Ask the control plane; a node's own certificate opens nothing.",
            role=", ".join(sorted(uris))[:200] or "none",
        )
