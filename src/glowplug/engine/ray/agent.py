"""What the engine and the actor on a machine say to each other. One may be older than the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AgentSettings:
    """How the agent of one machine is kept. No secrets: Ray shows whom it gives them to.

    ``environment`` are variables that the agent gets where its machine's own environment has none. ``serve``
    is where its router listens, HOST:PORT or ``off``, unless the machine itself says so; None is the default.
    """

    name: str
    folder: str
    control_url: str
    advertise: str
    gateway_port: int
    labels: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    serve: str | None = None


@dataclass(frozen=True)
class JoinOrder:
    """Join the cluster with this token, whatever was joined before."""

    token: str = field(repr=False)


@dataclass(frozen=True)
class AgentReport:
    """What is on a machine. ``node`` and ``control_url`` are of what it joined last.

    ``is_kept``: a supervisor runs there. ``is_busy``: it is being joined or started. ``problem`` is what
    joining or starting ended with last: an error as a dictionary.
    """

    settings: AgentSettings
    node: str | None = None
    control_url: str | None = None
    is_kept: bool = False
    is_busy: bool = False
    problem: dict[str, Any] | None = None
