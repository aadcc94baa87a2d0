"""A cluster's certificates for tests, as they come to be: an authority, control's, and those of nodes."""

from __future__ import annotations

from pathlib import Path

from glowplug.identity.authority import Authority
from glowplug.identity.files import replace_file
from glowplug.identity.keys import load_or_create_key, signing_request
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.paths import IdentityDir


def new_authority(folder: Path, clock: Clock | None = None) -> Authority:
    """An authority, and control's certificate, in ``folder``."""
    authority = Authority.open(IdentityDir(folder), clock or SystemClock())
    authority.ensure_control_certificate()
    return authority


def certify_node(authority: Authority, files: IdentityDir, name: str) -> None:
    """A key and a certificate for the node ``name``, as after it joined."""
    request = signing_request(load_or_create_key(files.node_key), name)
    replace_file(files.node_certificate, authority.issue_to_node(name, request).certificate)
    replace_file(files.authority_certificate, authority.certificate)


def certify_router(authority: Authority, files: IdentityDir, name: str) -> None:
    """A key and a certificate for the router on the node ``name``."""
    request = signing_request(load_or_create_key(files.node_key), name)
    replace_file(files.router_certificate, authority.issue_to_router(name, request).certificate)
    replace_file(files.authority_certificate, authority.certificate)
