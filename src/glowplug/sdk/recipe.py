"""A recipe: what Glowplug knows about one engine, as data.

A user who writes ``vllm serve MODEL`` means a server that is ready when ``/health`` says so, that is slow
until it has answered once, and that must be able to read MODEL. A recipe holds this knowledge and how to
recognise the command it is about. It never changes the command, and what the user says comes before
everything it says. :mod:`glowplug.sdk.recipe_choice` applies it; docs/engines.md says what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeGuard

from glowplug.sdk.options import DEFAULT_PORT, DEFAULT_READY
from glowplug.sdk.snapshot import Hook, Request
from glowplug.types.errors import InvalidInput

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_PYTHON_FLAG = re.compile(r"-[bBEIOsSuP]+")


@dataclass(frozen=True)
class Variant:
    """What else holds when the command has ``flag`` (with one of ``values``, if it names any)."""

    flag: str
    values: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    warmup: tuple[Request, ...] | None = None
    canary: tuple[Request, ...] | None = None
    before_snapshot: Hook | None = None
    after_restore: Hook | None = None

    def is_meant_by(self, command: Sequence[str]) -> bool:
        """Whether ``command`` has the flag."""
        if not self.values:
            return any(word == self.flag or word.startswith(f"{self.flag}=") for word in command)
        return value_of(command, self.flag) in self.values


@dataclass(frozen=True)
class Recipe:
    """How to serve one engine.

    ``commands`` are what it is recognised by: the first words of a command, each a shell-style pattern, the
    program without its folder. ``memory_bytes`` comes on top of the size of the weights. ``model_flags``
    name files or folders the engine reads; with ``takes_model`` the word right after ``commands`` is one,
    too. ``listens_everywhere`` False: it must be told to with ``--host``, or nobody outside its container
    reaches it.
    """

    name: str
    engine: str
    commands: tuple[str, ...]
    port: int = DEFAULT_PORT
    port_flags: tuple[str, ...] = ("--port",)
    host_flag: str = "--host"
    listens_everywhere: bool = True
    ready: str = DEFAULT_READY
    warmup: tuple[Request, ...] = ()
    canary: tuple[Request, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    model_flags: tuple[str, ...] = ()
    takes_model: bool = False
    cpus: float | None = None
    memory_bytes: int | None = None
    startup_timeout_s: float | None = None
    variants: tuple[Variant, ...] = ()

    def recognises(self, command: Sequence[str]) -> bool:
        """Whether ``command`` starts this engine."""
        return self._own_words(command) is not None

    def port_of(self, command: Sequence[str]) -> int:
        """Where ``command`` listens."""
        said = [value for flag in self.port_flags if (value := value_of(command, flag)) is not None]
        return int(said[-1]) if said and is_port(said[-1]) else self.port

    def models_of(self, command: Sequence[str]) -> list[str]:
        """The models that ``command`` names: paths, or names on a hub."""
        models = [value for flag in self.model_flags if (value := value_of(command, flag)) is not None]
        own_words = self._own_words(command)
        if self.takes_model and own_words is not None:
            models += [word for word in command[own_words : own_words + 1] if not word.startswith("-")]
        return models

    def check_host(self, command: Sequence[str]) -> None:
        """Raise InvalidInput if ``command`` listens where nobody outside its container can reach it."""
        host = value_of(command, self.host_flag)
        if host in LOOPBACK_HOSTS or (host is None and not self.listens_everywhere):
            raise InvalidInput(
                f"{self.engine} would listen on {host or LOOPBACK_HOSTS[0]} only, inside its container.",
                remedy=f"Add {self.host_flag} 0.0.0.0 to its command.",
                recipe=self.name,
            )

    def _own_words(self, command: Sequence[str]) -> int | None:
        """How many words of ``command`` are matched by one of ``commands``, if one matches."""
        words, skipped = _plain(command)
        for pattern in (pattern.split() for pattern in self.commands):
            pairs = zip(pattern, words, strict=False)
            if len(words) >= len(pattern) and all(fnmatchcase(word, part) for part, word in pairs):
                return len(pattern) + skipped
        return None


def value_of(command: Sequence[str], flag: str) -> str | None:
    """The last value of ``flag`` in ``--flag VALUE`` or ``--flag=VALUE``; None without one."""
    found = None
    for index, word in enumerate(command):
        if word == flag and index + 1 < len(command):
            found = command[index + 1]
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def is_port(word: str | None) -> TypeGuard[str]:
    """Whether a word of a command is a TCP port."""
    is_number = word is not None and word.isascii() and word.isdigit() and len(word) <= 5
    return is_number and 1 <= int(word or 0) <= 65535


def is_python(program: str) -> bool:
    """Whether a program's name, without its folder, is that of a Python interpreter."""
    return _PYTHON.fullmatch(program) is not None


def _plain(command: Sequence[str]) -> tuple[list[str], int]:
    """``command`` as patterns see it, and how many of its words were left out.

    ``/opt/venv/bin/python3.11 -u -m vllm`` reads ``python -m vllm``.
    """
    program = Path(command[0]).name
    rest = list(command[1:])
    if not is_python(program):
        return [program, *rest], 0
    while rest and _PYTHON_FLAG.fullmatch(rest[0]):
        rest.pop(0)
    return ["python", *rest], len(command) - 1 - len(rest)
