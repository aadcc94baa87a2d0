"""What makes one copy of a snapshot different from the next: environment, secrets, host name, randomness.

A process goes through phases: loaded, then activated, and after a freeze and a restore activated once more.
Activation is idempotent within a phase, so the agent may repeat a request whose answer it lost.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import Any

from glowplug import hooks
from glowplug.sdk.lifecycle import Moment
from glowplug.sdk.runner_target import Target
from glowplug.types.errors import InvalidInput


@dataclass(frozen=True)
class Activation:
    """The body of ``POST /.glowplug/activate``, checked."""

    env: dict[str, str]
    restored: bool
    hostname: str | None = None

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Activation:
        """Check a body. Raises InvalidInput, which never repeats a value: it may be a secret."""
        env, restored, hostname = body.get("env", {}), body.get("restored", False), body.get("hostname")
        is_env = isinstance(env, dict) and all(_is_variable(name, value) for name, value in env.items())
        if not is_env or not isinstance(restored, bool) or not isinstance(hostname, str | None):
            raise InvalidInput(
                "The activation is malformed.",
                remedy='Send {"env": {"NAME": "value"}, "restored": true or false}.',
            )
        return cls(env, restored, hostname)


class Phases:
    """Which phase of its life the process is in. All methods but the property run on the main thread."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._is_activated = False
        self._is_restored = False

    @property
    def is_activated(self) -> bool:
        """Callers may call."""
        return self._is_activated

    def activate(self, activation: Activation) -> bool:
        """Make this copy its own and run ``enter(snap=False)``; False if this phase already did."""
        if self._is_activated and (self._is_restored or not activation.restored):
            return False
        self._is_activated = False
        os.environ.update(activation.env)
        if activation.hostname and activation.hostname != socket.gethostname():
            _set_hostname(activation.hostname)
        hooks.reseed()
        self._target.run_hooks(Moment.ENTER_AFTER_RESTORE)
        self._is_restored = activation.restored
        self._is_activated = True
        return True

    def before_snapshot(self) -> None:
        """Make the memory ready to be captured. Whoever wakes up from it must be activated again."""
        self._is_activated = False
        self._is_restored = False
        self._target.run_hooks(Moment.BEFORE_SNAPSHOT)
        hooks.return_free_memory()


def _is_variable(name: str, value: object) -> bool:
    if not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
        return False
    try:
        os.fsencode(name + value)
    except UnicodeEncodeError:
        return False
    return True


def _set_hostname(hostname: str) -> None:
    try:
        socket.sethostname(hostname)
    except OSError as error:
        # A sandbox may forbid it; nothing of ours depends on it.
        print(f"glowplug: the host name stays as it was: {error}", file=sys.stderr)
