"""Ask a Python interpreter of the host where it and its packages lie, and what would make it another one.

The interpreter is asked, not guessed at: layouts differ (venv, virtualenv, uv, conda, pyenv, Debian), but
each interpreter knows its own prefixes and search path.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glowplug.image.command import clean
from glowplug.image.inside import DEFAULT_PATH
from glowplug.image.resolve import trace
from glowplug.types.errors import InvalidInput

ANSWER_TIMEOUT_S = 30.0  # usually 20 ms; a cold disk or a network filesystem may need seconds
SYSTEM_PYTHON = Path("/usr/bin/python3")
_QUESTION = """
import json, platform, sys
print(json.dumps({
    "version": sys.version, "libc": list(platform.libc_ver()), "prefix": sys.prefix,
    "base_prefixes": sorted({sys.base_prefix, sys.base_exec_prefix}), "search_path": sys.path,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A working interpreter. ``executable`` is the path as the user knows it, links and all.

    ``home`` is where a virtual environment's own notes say that its base interpreter lies.
    """

    executable: Path
    version: str
    libc: str
    prefix: Path
    base_prefixes: tuple[Path, ...]
    search_path: tuple[Path, ...]
    home: Path | None

    def identity(self) -> dict[str, object]:
        """Changes with the interpreter, the C library, the virtual environment or any installed package."""
        real = trace(self.executable).end.stat()
        notes = self.prefix / "pyvenv.cfg"
        return {
            "version": self.version,
            "libc": self.libc,
            "executable": [real.st_size, real.st_mtime_ns],
            "pyvenv": notes.read_text(errors="replace") if notes.is_file() else "",
            "packages": _digest(self._packages()),
        }

    def _packages(self) -> Iterator[str]:
        for folder in self.search_path:
            if not folder.is_dir():
                continue
            for entry in sorted(folder.iterdir()):
                if entry.suffix in (".dist-info", ".egg-info"):
                    record = entry / "RECORD"
                    status = (record if record.exists() else entry).stat()
                    yield f"{entry}\0{status.st_size}\0{status.st_mtime_ns}"


def ask_interpreter(venv: Path | None) -> Interpreter:
    """The interpreter of ``venv`` (None: the node's system Python). Raises InvalidInput if it is broken."""
    executable = SYSTEM_PYTHON if venv is None else venv / "bin" / "python"
    if venv is not None:
        _check_folder(venv)
    if not executable.exists():
        where = "leads nowhere" if executable.is_symlink() else "does not exist"
        raise _broken(venv, f"{executable} {where}")
    try:
        answer = subprocess.run(
            [executable, "-I", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ANSWER_TIMEOUT_S,
            env={"PATH": DEFAULT_PATH, "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired as silent:
        raise _broken(venv, f"{executable} does not answer within {ANSWER_TIMEOUT_S:.0f} s") from silent
    except OSError as problem:
        raise _broken(venv, f"{executable} cannot be run: {problem.strerror}") from problem
    if answer.returncode != 0:
        last_words = clean(answer.stderr[-500:].replace(b"\n", b" "))
        raise _broken(venv, f"{executable} ends with {answer.returncode}: {last_words}")
    try:
        facts = json.loads(answer.stdout)
        interpreter = Interpreter(
            executable=executable,
            version=str(facts["version"]),
            libc=" ".join(facts["libc"]),
            prefix=Path(facts["prefix"]),
            base_prefixes=tuple(Path(prefix) for prefix in facts["base_prefixes"]),
            search_path=tuple(Path(entry) for entry in facts["search_path"] if entry.startswith("/")),
            home=_home(venv),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as nonsense:
        raise _broken(venv, f"{executable} does not answer like Python") from nonsense
    if venv is not None and os.path.realpath(interpreter.prefix) != os.path.realpath(venv):
        raise _broken(venv, f"its interpreter belongs to {interpreter.prefix}; is pyvenv.cfg missing?")
    return interpreter


def _check_folder(venv: Path) -> None:
    if not trace(venv).end.is_dir():
        raise _broken(venv, "it is not a folder")


def _home(venv: Path | None) -> Path | None:
    """``home`` of ``pyvenv.cfg``: Python starts its search there, so that very path must work inside."""
    notes = venv / "pyvenv.cfg" if venv is not None else None
    if notes is None or not notes.is_file():
        return None
    for line in notes.read_text(errors="replace").splitlines():
        name, _, value = line.partition("=")
        if name.strip().lower() == "home" and value.strip().startswith("/"):
            return Path(value.strip())
    return None


def _broken(venv: Path | None, why: str) -> InvalidInput:
    if venv is None:
        return InvalidInput(
            f"The node's system Python cannot be used: {why}.",
            remedy="Install it (apt-get install python3), or name a virtual environment.",
        )
    return InvalidInput(
        f"The virtual environment {venv} cannot be used: {why}.",
        remedy=f"Make it anew on the node: python3 -m venv --clear {venv}",
        venv=str(venv),
    )


def _digest(lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
