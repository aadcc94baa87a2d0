"""Where a node is: on this machine, behind a Unix socket, or on another, behind its gateway."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class LocalNode:
    """The node of this machine: its agent's socket; its replicas are namespaces here."""

    socket_path: Path


@dataclass(frozen=True)
class RemoteNode:
    """A node of the cluster: its gateway, the name its certificate must have, and what we show it.

    ``http`` is for calls of its agent, ``tunnel`` for its replicas: they differ in what they agree on (ALPN).
    """

    name: str
    host: str
    port: int
    http: ssl.SSLContext = field(repr=False, compare=False)
    tunnel: ssl.SSLContext = field(repr=False, compare=False)


NodeAddress: TypeAlias = LocalNode | RemoteNode
