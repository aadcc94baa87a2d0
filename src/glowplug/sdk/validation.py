"""What users may put into an app file, checked with words they can act on.

The node validates the finished specification again; these checks exist so that a mistake is reported where
it was made, in the user's vocabulary, with a remedy. They promise that what they let through, the
specification accepts (a property test holds the two together).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from glowplug.types.errors import InvalidInput

MAX_PATH_CHARACTERS = 4096
MIN_MEMORY_BYTES = 32 << 20
# Where the node places its own things in every replica; /app is ours for classes and functions only.
RESERVED_MOUNTS = ("/proc", "/sys", "/dev", "/.glowplug", "/run/glowplug")
_MEMORY = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)\s*", re.ASCII)
_UNIT_BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_MEMORY_REMEDY = 'Write "4GiB", "512MiB" or a whole number of bytes, at least 32 MiB.'


def text(value: object, what: str) -> str:
    """A non-empty string that can be passed to a program: no NUL, encodable as UTF-8."""
    if not isinstance(value, str) or not value:
        raise InvalidInput(
            f"{what} must be a non-empty string, not {value!r}.", remedy="Put it in quotes, as text."
        )
    return _clean(value, what)


def texts(values: object, what: str) -> list[str]:
    """A list of non-empty strings; one bare string is the usual mistake, and named as such."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidInput(f"{what} must be a list of strings, not {values!r}.", remedy='Write ["..."].')
    return [text(value, f"each of {what}") for value in values]


def command(value: object, what: str) -> list[str]:
    """A program and its arguments; an argument may be empty, the program not."""
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInput(
            f"{what} is {value!r}, not a list of strings.", remedy='Write ["program", "argument", ...].'
        )
    for part in value:
        if not isinstance(part, str):
            raise InvalidInput(
                f"{what} holds {part!r}, which is not a string.", remedy='Put numbers in quotes: "8000".'
            )
    return [text(value[0], "the program to run"), *(_clean(part, "an argument") for part in value[1:])]


def boolean(value: object, what: str) -> bool:
    """True or False, nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{what} must be True or False, not {value!r}.", remedy="Write True or False.")
    return value


def number(value: object, what: str, *, low: float, high: float, above_low: bool = False) -> float:
    """A number (a finite one, as ``high`` is) from ``low`` (or just above it) to ``high``."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not low <= value <= high or (above_low and value == low):  # type: ignore[operator]
        lower = f"above {low:g}" if above_low else f"from {low:g}"
        raise InvalidInput(f"{what} cannot be {value!r}.", remedy=f"Use a number {lower} up to {high:g}.")
    return float(value)  # type: ignore[arg-type]


def whole_number(value: object, what: str, *, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(f"{what} cannot be {value!r}.", remedy=f"Use a whole number from {low} to {high}.")
    return value


def memory_bytes(value: object) -> int:
    """Bytes from ``"4GiB"``, ``"512MiB"``, ``"4GB"`` or a number of bytes."""
    amount: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        amount = value
    elif isinstance(value, str) and (match := _MEMORY.fullmatch(value)):
        amount = int(float(match[1]) * _UNIT_BYTES[match[2]])
    if amount is None:
        raise InvalidInput(f"memory {value!r} is not an amount of memory.", remedy=_MEMORY_REMEDY)
    if not MIN_MEMORY_BYTES <= amount < 1 << 62:
        raise InvalidInput(f"memory {value!r} is out of range.", remedy=_MEMORY_REMEDY)
    return amount


def environment(values: object, what: str) -> dict[str, str]:
    """Environment variables: well-formed names, string values."""
    if not isinstance(values, Mapping):
        raise InvalidInput(
            f"{what} must be a dictionary, not {type(values).__name__}.", remedy='Write {"NAME": "value"}.'
        )
    return {_variable_name(name, what): variable_value(values[name], f"{what} {name}") for name in values}


def _variable_name(name: object, what: str) -> str:
    if not isinstance(name, str) or not name or "=" in name:
        raise InvalidInput(
            f"{name!r} in {what} is not an environment variable's name.",
            remedy="Use letters, digits and underscores.",
        )
    return _clean(name, f"a name in {what}")


def variable_value(value: object, what: str) -> str:
    """An environment variable's value. The message never repeats it: it may be a secret."""
    if not isinstance(value, str):
        raise InvalidInput(
            f"{what} must be a string, not {type(value).__name__}.", remedy='Write numbers as text: "1".'
        )
    return _clean(value, what)


def remote_path(value: object, what: str, *, reserved: tuple[str, ...] = RESERVED_MOUNTS) -> str:
    """A normal absolute path inside the container at which something may be placed."""
    path = text(os.fspath(value) if isinstance(value, os.PathLike) else value, what)
    pure = PurePosixPath(path)
    if not path.startswith("/") or ".." in pure.parts or len(path) > MAX_PATH_CHARACTERS:
        raise InvalidInput(
            f"{what} {path!r} is not an absolute path.", remedy='Write a path like "/models", without "..".'
        )
    normal = "/" + str(pure).lstrip("/")
    if normal == "/" or any(normal == taken or normal.startswith(f"{taken}/") for taken in reserved):
        raise InvalidInput(
            f"{what} {path!r} is in use by the system.",
            remedy=f"Choose a path other than / and outside {', '.join(reserved)}.",
        )
    return normal


def local_path(value: object, folder: Path, what: str, *, must_be: str = "folder") -> Path:
    """A host path, made absolute. Relative ones lie below the app's folder, and must exist there.

    Absolute ones are judged by the node: they need not exist on the machine that deploys.
    """
    given = Path(text(os.fspath(value) if isinstance(value, os.PathLike) else value, what))
    try:
        path = Path(os.path.normpath(folder / given.expanduser()))
    except RuntimeError as error:
        raise InvalidInput(f"{what} {str(given)!r} names no home.", remedy="Write the whole path.") from error
    if len(str(path)) > MAX_PATH_CHARACTERS:
        raise InvalidInput(
            f"{what} is too long a path.", remedy=f"Use at most {MAX_PATH_CHARACTERS} characters."
        )
    is_there = path.is_dir() if must_be == "folder" else path.is_file()
    if not given.is_absolute() and not is_there:
        raise InvalidInput(
            f"{what} {str(given)!r} is no {must_be}: there is none at {path}.",
            remedy=f"Relative paths start at the app file's folder, {folder}. Create it or correct the path.",
        )
    _clean(str(path), what)
    return path


def _clean(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid text.", remedy="Use characters UTF-8 can carry.") from None
    if "\0" in value:
        raise InvalidInput(f"{what} contains a NUL character.", remedy="Remove it.")
    return value
