"""What the engine saw when it looked last: a file in the state directory, for ``cluster status``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from glowplug.engine.port import Machine, MachineState
from glowplug.engine.record import write_atomically
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

_AT_WORK = (MachineState.RUNNING, MachineState.DRAINING)


class EngineStatus(BaseModel):
    """``run/engine.json``. ``error``: why it could not look. ``is_over``: it has ended all agents, but those
    in ``left``, with the reasons.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    engine: str
    address: str
    at: float
    machines: list[Machine] = []
    error: dict[str, Any] | None = None
    is_over: bool = False
    left: dict[str, str] = {}

    @property
    def missing(self) -> list[Machine]:
        """Those that do nothing for us at the moment, and have not come back under another id."""
        here = {one.node for one in self.machines if one.state in _AT_WORK}
        return [
            one
            for one in self.machines
            if one.state is MachineState.PENDING or (one.state is MachineState.GONE and one.node not in here)
        ]


def write_status(
    state: StateDir,
    engine: str,
    address: str,
    at: float,
    *,
    machines: Sequence[Machine] = (),
    error: GlowplugError | None = None,
    left: dict[str, str] | None = None,
) -> None:
    """Replace what was written before; ``left`` is said at the end."""
    told = EngineStatus(
        engine=engine,
        address=address,
        at=at,
        machines=list(machines),
        error=error.to_dict() if error else None,
        is_over=left is not None,
        left=left or {},
    )
    write_atomically(state.engine_status, told.model_dump_json())


def read_status(state: StateDir) -> EngineStatus | None:
    """What was written last; None where there is none that can be read."""
    try:
        return EngineStatus.model_validate_json(state.engine_status.read_bytes())
    except (OSError, ValidationError):
        return None
