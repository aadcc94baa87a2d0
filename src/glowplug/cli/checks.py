"""The doctor's checks as data: what is looked at, why it matters, how to get it, what can be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from glowplug.cli.machine import Machine


class Level(StrEnum):
    """``ok``: fit. ``warn``: something optional is missing. ``fail``: Glowplug cannot run servers here."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What a check found, in words, and how bad it is."""

    level: Level
    found: str


def ok(found: str) -> Finding:
    """A finding that is fine."""
    return Finding(Level.OK, found)


def warn(found: str) -> Finding:
    """A finding that costs a feature."""
    return Finding(Level.WARN, found)


def fail(found: str) -> Finding:
    """A finding that stops everything."""
    return Finding(Level.FAIL, found)


@dataclass(frozen=True)
class Fix:
    """How ``--fix`` gets a piece: Debian packages, or the runsc installer."""

    packages: tuple[str, ...] = ()
    installs_runsc: bool = False


@dataclass(frozen=True)
class Check:
    """One piece of the system. ``probe`` looks and changes nothing; ``get`` is an instruction for people."""

    name: str
    why: str
    get: str
    probe: Callable[[Machine], Finding]
    fix: Fix | None = None


@dataclass(frozen=True)
class CheckResult:
    """A check that has been made."""

    check: Check
    finding: Finding

    def to_dict(self) -> dict[str, Any]:
        """The machine format of ``doctor --json``."""
        return {
            "name": self.check.name,
            "level": self.finding.level.value,
            "found": self.finding.found,
            "why": self.check.why,
            "get": self.check.get,
            "fixable": self.check.fix is not None,
        }


def run_checks(checks: Iterable[Check], machine: Machine) -> Iterator[CheckResult]:
    """Make the checks, one after the other."""
    for check in checks:
        yield CheckResult(check, check.probe(machine))
