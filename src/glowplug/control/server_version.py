"""What to start: one server of one immutable deployment."""

from __future__ import annotations

from dataclasses import dataclass, field

from glowplug.types.spec import ServerSpec


@dataclass(frozen=True)
class ServerVersion:
    """``secrets`` are values by name."""

    deployment_id: str
    spec: ServerSpec
    image_id: str
    secrets: dict[str, str] = field(repr=False)
