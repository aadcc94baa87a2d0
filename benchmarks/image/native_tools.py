"""The benchmark's own programs in C, compiled once: what measures must cost little on two shared cores."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-pthread")
COMPILE_TIMEOUT_S = 120.0


class NativeTools:
    """Paths of the programs, made in ``folder`` when they are first asked for or their source has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def delayed_server(self) -> Path:
        """A folder over HTTP, with latency and a limited rate."""
        return self._compiled("delayed_server")

    @property
    def read_file(self) -> Path:
        """Reads a file in order or at random."""
        return self._compiled("read_file")

    @property
    def whole_file_fuse(self) -> Path:
        """The file-at-a-time peer. Needs Debian's libfuse3-dev."""
        return self._compiled("whole_file_fuse", "fuse3")

    def _compiled(self, name: str, *libraries: str) -> Path:
        source, program = SOURCES / f"{name}.c", self._folder / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            flags, links = _flags("--cflags", libraries), _flags("--libs", libraries)
            command = ["cc", *_FLAGS, *flags, "-o", str(program), str(source), *links]
            subprocess.run(command, check=True, timeout=COMPILE_TIMEOUT_S)
        return program


def _flags(kind: str, libraries: tuple[str, ...]) -> list[str]:
    if not libraries:
        return []
    command = ["pkg-config", kind, *libraries]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
