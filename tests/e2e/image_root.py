"""A root filesystem with a Python of its own, small enough to be imported in a second."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PYTHON = Path("/usr/bin/python3.11")
LIBRARY = Path("/usr/lib/python3.11")
_LEFT_OUT = shutil.ignore_patterns("test", "idlelib", "tkinter", "ensurepip", "config-*", "dist-packages")


def make_python_root(root: Path) -> Path:
    """Debian's Python with its library and what they link to, and a file of 100 MB that nobody reads."""
    for folder in ("usr/bin", "usr/lib", "etc", "tmp", "proc", "dev", "sys", "root", "srv"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copytree(LIBRARY, root / "usr/lib/python3.11", ignore=_LEFT_OUT, symlinks=True)
    for program in (PYTHON, Path("/usr/bin/cat")):
        shutil.copy2(program, root / "usr/bin" / program.name)
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "bin").symlink_to("usr/bin")
    for library in _libraries([PYTHON, Path("/usr/bin/cat"), *LIBRARY.glob("lib-dynload/*.so")]):
        target = root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(library, target)
    unread = bytes(range(256)) * 4096
    (root / "srv/unread").write_bytes(b"".join(bytes([number]) + unread for number in range(96)))
    for path in [*root.rglob("*"), root]:
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)  # umoci rounds times
    return root


def _libraries(files: list[Path]) -> set[Path]:
    ended = subprocess.run(["ldd", *files], capture_output=True, text=True, timeout=60, check=False)
    words = (word for line in ended.stdout.splitlines() for word in line.split())
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}
