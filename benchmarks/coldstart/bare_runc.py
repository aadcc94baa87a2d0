"""The yardstick for runc: its own ``restore`` of the same image, in mounts made before the clock runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bare_restore import BareRestore

from glowplug.runtime import criu
from glowplug.runtime.runc import find_runc
from glowplug.runtime.runc_image import FILES_ARCHIVE, read_description
from glowplug.runtime.writable import WritableFolders, unmount_below

_STDOUT = 1


class BareRunc(BareRestore):
    """``container_folder`` is what the runtime keeps of the running copy of ``replica_folder``."""

    def __init__(self, replica_folder: Path, container_folder: Path, image: Path, work: Path) -> None:
        super().__init__(replica_folder, image, work)
        self._own = work / "container"
        self._base = work / "base"
        # Without what is mounted in it: the image's own files, and the mount points.
        subprocess.run(["cp", "-ax", container_folder / "root", self._base], check=True)
        self._config = json.loads(json.dumps(self._config).replace(str(container_folder), str(self._own)))

    def _find_program(self) -> list[str]:
        return [str(find_runc()), f"--root={self._work / 'runc'}", f"--criu={criu.find_criu()}"]

    def _prepare(self, name: str) -> None:
        unmount_below(self._own)
        memory_bytes = self._config["linux"]["resources"]["memory"]["limit"]
        folders = WritableFolders(self._own)
        folders.mount(self._base, memory_bytes)
        folders.load(self._image / FILES_ARCHIVE)
        outside = read_description(self._image, name)
        (self._own / "criu.conf").write_text(criu.restore_options(outside, _STDOUT))

    def _restore_command(self) -> list[str]:
        command = [*self._program, "restore", "--detach", "--bundle", str(self._folder / "bundle")]
        return [*command, "--image-path", str(self._image), "--work-path", str(self._own)]

    def close(self) -> None:
        """Unmount what was made."""
        unmount_below(self._own)
