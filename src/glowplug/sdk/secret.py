"""Secrets: values that reach a replica after it started or was restored, and are never part of an image,
a specification or a snapshot.

Nothing is read until the app is described on the user's machine: the same app file is imported inside the
container, where neither the file nor the variable exists. A value never appears in ``repr`` or in an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from glowplug.sdk import validation
from glowplug.types.errors import InvalidInput

MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]{0,254})\s*=\s*(.*)", re.ASCII | re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_FILE_REMEDY = "Write one NAME=VALUE a line; quote values that hold spaces around a # or start with a quote."


class Secret:
    """Named values for ``secrets=[...]``; inside a replica they are environment variables."""

    def __init__(self, description: str, read: Callable[[Path], dict[str, str]]) -> None:
        self._description = description
        self._read = read

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Secret:
        """These very values. Better not written in a file under version control."""
        if not isinstance(values, Mapping) or not values:
            raise InvalidInput("A secret needs at least one value.", remedy='Write {"NAME": "value"}.')
        kept = dict(values)
        return cls(", ".join(map(str, kept)), lambda _folder: _checked(kept))

    @classmethod
    def from_env(cls, *names: str) -> Secret:
        """Variables of the environment in which the app is deployed."""
        if not names:
            raise InvalidInput("Secret.from_env needs a name.", remedy='Write Secret.from_env("HF_TOKEN").')
        return cls(", ".join(map(str, names)), lambda _folder: _checked(_from_environment(names)))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Secret:
        """A file of NAME=VALUE lines; relative paths start at the app file's folder."""
        return cls(f"file {os.fspath(path)!r}", lambda folder: _checked(_from_file(path, folder)))

    def resolve(self, folder: Path) -> dict[str, str]:
        """Read the values now. Raises InvalidInput that names what is missing, never a value."""
        return self._read(folder)

    def __repr__(self) -> str:
        return f"Secret({self._description})"


def parse_lines(content: str, where: str) -> dict[str, str]:
    """Read NAME=VALUE lines: ``#`` comments, ``export``, 'literal' and "escaped" values."""
    values: dict[str, str] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        value = _unquoted(match[2]) if match else None
        if match is None or value is None:
            raise InvalidInput(f"{where}, line {number} is not NAME=VALUE.", remedy=_FILE_REMEDY)
        values[match[1]] = value
    return values


def _unquoted(raw: str) -> str | None:
    """The value a line holds, or None if its quotes do not match."""
    quote = raw[:1]
    if quote not in ("'", '"'):
        return re.split(r"\s+#", raw, maxsplit=1)[0].rstrip() if not raw.startswith("#") else ""
    pattern = r"'([^']*)'" if quote == "'" else r'"((?:[^"\\]|\\.)*)"'
    match = re.fullmatch(pattern + r"\s*(?:#.*)?", raw, re.DOTALL)
    if match is None:
        return None
    if quote == "'":
        return match[1]
    return _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), match[1])


def _from_environment(names: tuple[str, ...]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise InvalidInput(
            f"The secret {', '.join(map(repr, missing))} is not set in the environment.",
            remedy=f"Run `export {missing[0]}=...` before you deploy.",
        )
    return {name: os.environ[name] for name in names}


def _from_file(path: str | os.PathLike[str], folder: Path) -> dict[str, str]:
    resolved = validation.local_path(path, folder, "secret file", must_be="file")
    try:
        with resolved.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        content = data.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(
            f"The secret file {resolved} cannot be read: {error.strerror}.",
            remedy="Create it, or make it readable.",
        ) from None
    except UnicodeDecodeError:
        # `from None`: the original error carries the file's bytes.
        raise InvalidInput(f"The secret file {resolved} is not text.", remedy=_FILE_REMEDY) from None
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"The secret file {resolved} is larger than 1 MiB.", remedy=_FILE_REMEDY)
    values = parse_lines(content, f"The secret file {resolved}")
    if not values:
        raise InvalidInput(f"The secret file {resolved} holds no values.", remedy=_FILE_REMEDY)
    return values


def _checked(values: Mapping[str, object]) -> dict[str, str]:
    for name in values:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{name!r} cannot be the name of a secret.",
                remedy="Use letters, digits and underscores, not starting with a digit.",
            )
    return {name: validation.variable_value(value, f"secret {name}") for name, value in values.items()}
