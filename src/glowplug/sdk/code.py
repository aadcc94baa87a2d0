"""Which code a class or function runs: its folder, its file, and a digest of every Python file beside it.

The digest is part of a snapshot's key, so it promises: changed code, another digest; the same files, the
same digest, on any machine. Hidden folders and virtual environments are left out: the container's Python
does not import from them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glowplug.sdk import validation
from glowplug.types.errors import InvalidInput

MAX_FILES = 20_000
MAX_CODE_BYTES = 64 << 20
_REMEDY = "Move the app file, with the Python files it imports, into a folder of its own."


def code_spec(file: Path, target: str, kind: str) -> dict[str, Any]:
    """The ``CodeSpec`` for ``target`` in ``file``."""
    if file.suffix != ".py":
        raise InvalidInput(f"{file} is not a Python file.", remedy="Define the app in a file named NAME.py.")
    return {
        "local_dir": validation.text(str(file.parent), "the app's folder"),
        "module": file.name,
        "target": target,
        "target_kind": kind,
        "code_digest": code_digest(file.parent),
    }


def code_digest(folder: Path) -> str:
    """SHA-256 (hex) over the folder's ``*.py`` files, by relative path. Raises InvalidInput beyond limits."""
    digest = hashlib.sha256()
    code_bytes = 0
    for path in sorted(_python_files(folder), key=lambda path: os.fsencode(path.relative_to(folder))):
        content = _read(path, MAX_CODE_BYTES - code_bytes, folder)
        code_bytes += len(content)
        name = os.fsencode(path.relative_to(folder))
        # Lengths first: no two different folders can feed the same bytes.
        digest.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def _python_files(folder: Path) -> Iterator[Path]:
    seen = 0
    for directory, folders, files in os.walk(folder, onerror=_raise):
        # In place: os.walk then leaves them out.
        folders[:] = [name for name in folders if _holds_code(Path(directory, name))]
        seen += len(files)
        if seen > MAX_FILES:
            raise InvalidInput(f"The app's folder {folder} has more than {MAX_FILES} files.", remedy=_REMEDY)
        yield from (Path(directory, name) for name in files if name.endswith(".py"))


def _holds_code(folder: Path) -> bool:
    return not folder.name.startswith(".") and not (folder / "pyvenv.cfg").exists()


def _read(path: Path, limit_bytes: int, folder: Path) -> bytes:
    try:
        # Not blocking: a named pipe called x.py must not hold the deployment.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}.", remedy="Make it readable, or remove it."
        ) from error
    if len(content) > limit_bytes:
        raise InvalidInput(
            f"The app's folder {folder} has more than {MAX_CODE_BYTES >> 20} MiB of Python files.",
            remedy=_REMEDY,
        )
    return content


def _raise(error: OSError) -> None:
    raise InvalidInput(
        f"The app's folder cannot be read at {error.filename}: {error.strerror}.",
        remedy="Make it readable, or move the app file elsewhere.",
    ) from error
