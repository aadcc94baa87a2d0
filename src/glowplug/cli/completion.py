"""Names for the shell's TAB key: apps, replicas, snapshots, images and nodes that exist right now.

A shell waits while we look, so we look for a second at most, and whatever goes wrong means no suggestions:
a completion has no place to show an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from glowplug.cli.client import ApiClient
from glowplug.cli.session import Session
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

_TIMEOUT_S = 1.0


def apps(context: typer.Context, incomplete: str) -> list[str]:
    """Names of deployed apps."""
    return _matching(context, incomplete, _app_names)


def servers(context: typer.Context, incomplete: str) -> list[str]:
    """Apps, and ``APP/SERVER``."""
    return _matching(context, incomplete, _server_names)


def replicas(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of replicas, and ``APP/SERVER``."""
    return _matching(
        context, incomplete, lambda client: [r.id for r in client.replicas()] + _server_names(client)
    )


def snapshots(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of snapshots."""
    return _matching(context, incomplete, lambda client: [s.id for s in client.snapshots()])


def images(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of images, and their names."""
    return _matching(
        context,
        incomplete,
        lambda client: [image.id for image in client.images()] + _image_names(client),
    )


def image_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of imported images, and the short digests of those that have none."""
    return _matching(context, incomplete, _image_names)


def nodes(context: typer.Context, incomplete: str) -> list[str]:
    """Names of nodes."""
    return _matching(context, incomplete, lambda client: [node.name for node in client.nodes()])


def _app_names(client: ApiClient) -> list[str]:
    return [deployment.app for deployment in client.deployments() if deployment.active]


def _image_names(client: ApiClient) -> list[str]:
    return [name for index in client.indexes() for name in index.names or [index.digest[:12]]]


def _server_names(client: ApiClient) -> list[str]:
    active = [deployment for deployment in client.deployments() if deployment.active]
    return [d.app for d in active] + [f"{d.app}/{server}" for d in active for server in d.servers]


def _matching(context: typer.Context, incomplete: str, names: Callable[[ApiClient], list[str]]) -> list[str]:
    # The callback that makes a session does not run during completion, but its options are parsed.
    options = context.find_root().params
    root = options.get("state")
    state = StateDir(Path(root).absolute()) if root else StateDir.from_environment()
    session = Session(state, url=options.get("url"), token=options.get("token"))
    try:
        with session.client(_TIMEOUT_S) as client:
            return sorted({name for name in names(client) if name.startswith(incomplete)})
    except GlowplugError:
        return []
