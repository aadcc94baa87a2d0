"""What the agent writes down about each replica, so that its successor can adopt or clean up.

One folder per replica in ``run/replicas``: it exists before anything of the replica does and is removed
after everything of it is gone, so a folder without a living sandbox always means "clean this up".
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from glowplug.snapshot.manifest import CapturedGpu
from glowplug.types.paths import StateDir
from glowplug.types.replica import Message, ReplicaView
from glowplug.types.spec import ServerSpec

_REMOVALS = 3
_FILE = "replica.json"


class AwayDevices(Message):
    """The GPUs that a parked replica's device memory was on, and who has hooks to run once it is back."""

    gpus: list[CapturedGpu]
    hook_ports: list[int] = []

    @property
    def given(self) -> list[str]:
        """The UUIDs of those that were the replica's own."""
        return [gpu.uuid for gpu in self.gpus if gpu.is_given]

    @property
    def held_bytes(self) -> int:
        """How much it held of them."""
        return sum(gpu.held_bytes for gpu in self.gpus)


class ReplicaFile(Message):
    """Everything needed to find a replica's processes again. Secrets are not in it.

    ``away`` is there while its device memory lies on the host; ``is_moving`` while it is on its way there or
    back: then nobody but the agent that moves it knows how its processes are.
    """

    version: int = 1
    view: ReplicaView
    server: ServerSpec
    image_id: str
    pid_started_ticks: int | None = None
    away: AwayDevices | None = None
    is_moving: bool = False


class ReplicaFolder:
    """The folder of one replica: ``replica.json``, the runtime's ``bundle/``, ``inside/``, and ``execs/``."""

    def __init__(self, state: StateDir, replica_id: str) -> None:
        self.path = state.replicas / replica_id
        self.bundle = self.path / "bundle"
        self.inside = self.path / "inside"
        self.execs = self.path / "execs"
        self.log = state.replica_logs / f"{replica_id}.log"

    def create(self) -> None:
        """Make the folders, readable by root only: ``inside`` holds secrets."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.bundle, self.inside, self.execs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def save(self, record: ReplicaFile) -> None:
        """Replace ``replica.json`` in one step."""
        temporary = self.path / f"{_FILE}.new"
        temporary.write_text(record.model_dump_json())
        temporary.rename(self.path / _FILE)

    def load(self) -> ReplicaFile | None:
        """What was written, or None if the agent died before it wrote anything sound."""
        try:
            return ReplicaFile.model_validate_json((self.path / _FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def remove(self) -> None:
        """Remove the folder. The log stays, for whoever asks why. Raises OSError.

        A command that ends at this moment takes its own files away, or leaves one: then it is done again.
        """
        for _ in range(_REMOVALS):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
        shutil.rmtree(self.path)


def write_private(path: Path, text: str) -> None:
    """Write a file that only root can read, in one step."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.rename(path)
