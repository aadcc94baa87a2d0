"""How the parts of a cluster meet: TLS 1.3, both sides with a certificate of the cluster's authority.

Standard library only, so that what never meets another machine loads nothing for it.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from glowplug.types.errors import SystemUnfit
from glowplug.types.paths import IdentityDir

TUNNEL_PROTOCOL = "glowplug-tunnel/1"
"""ALPN's name for a connection that becomes a replica's after its first line."""
ROUTES_PROTOCOL = "glowplug-routes/1"
"""And for one on which control tells a node's router where requests may go (``types/routes.py``)."""
HTTP_PROTOCOL = "http/1.1"


def gateway_context(files: IdentityDir) -> ssl.SSLContext:
    """For a node's gateway: asks its callers for certificates. Raises SystemUnfit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nothing is resumed: every connection shows its certificate
    context.set_alpn_protocols([TUNNEL_PROTOCOL, ROUTES_PROTOCOL, HTTP_PROTOCOL])
    load_node_certificate(context, files)
    _trust_authority(context, files)
    return context


def load_node_certificate(context: ssl.SSLContext, files: IdentityDir) -> None:
    """Show this node's certificate, as it lies on the disk now, to whoever connects from now on."""
    _load_chain(context, files.node_certificate, files.node_key)


def control_context(files: IdentityDir, protocols: Sequence[str]) -> ssl.SSLContext:
    """For control, when it connects to gateways; the node's name is checked. Raises SystemUnfit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(list(protocols))
    load_control_certificate(context, files)
    _trust_authority(context, files)
    return context


def load_control_certificate(context: ssl.SSLContext, files: IdentityDir) -> None:
    """Show control's certificate, as it lies on the disk now, when connecting from now on."""
    _load_chain(context, files.control_certificate, files.control_key)


def router_context(files: IdentityDir) -> ssl.SSLContext:
    """For a node's router, when it connects to gateways for their replicas. Raises SystemUnfit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([TUNNEL_PROTOCOL])
    load_router_certificate(context, files)
    _trust_authority(context, files)
    return context


def load_router_certificate(context: ssl.SSLContext, files: IdentityDir) -> None:
    """Show the router's certificate, as it lies on the disk now, when connecting from now on."""
    _load_chain(context, files.router_certificate, files.node_key)


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(str(certificate), str(key))
    except OSError as error:
        raise SystemUnfit(
            f"The certificate {certificate} cannot be used: {error}.",
            remedy="Join the cluster again (`glowplug cluster join`); on the control plane, restart it.",
        ) from error


def _trust_authority(context: ssl.SSLContext, files: IdentityDir) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(str(files.authority_certificate))
    except OSError as error:
        raise SystemUnfit(
            f"The authority's certificate {files.authority_certificate} cannot be used: {error}.",
            remedy="Restore it from a copy, or join the cluster again.",
        ) from error
