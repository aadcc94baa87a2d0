"""Host folders shown to every replica: models, data, results.

A volume is pure data: whether its folder exists is looked at when the app is described, never when the app
file is merely imported (it is imported inside the container too, where the host's folders are not).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.sdk import validation


@dataclass(frozen=True)
class Volume:
    """A host folder, used as ``volumes={"/models": gp.Volume("/srv/models", read_only=True)}``."""

    host_path: str | os.PathLike[str]
    read_only: bool = False

    def to_spec(self, mount_path: str, folder: Path) -> dict[str, Any]:
        """The volume's part of a server's specification."""
        return {
            "host_path": str(validation.local_path(self.host_path, folder, "volume")),
            "mount_path": validation.remote_path(mount_path, "mount path"),
            "read_only": validation.boolean(self.read_only, "read_only"),
        }
