"""The one interface behind which container runtimes stand, and what it is given.

A :class:`Runtime` turns a :class:`Sandbox` description into a running, network-isolated process tree, and
its memory into files and back. The node agent owns the order of calls; an adapter owns only the translation
to its program. Errors are :class:`~glowplug.types.errors.RuntimeFailed` or ``DeadlineExceeded``, with the
program's own last words in ``details``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from glowplug.types.identity import RuntimeIdentity


@dataclass(frozen=True)
class SandboxMount:
    """A host folder or file shown inside. ``source`` may differ between copies of one snapshot."""

    source: Path
    destination: str
    read_only: bool = True


@dataclass(frozen=True)
class Sandbox:
    """Everything a runtime needs to know about one container.

    ``directory`` is a folder of ours for the runtime's bundle; ``log`` collects the container's stdout and
    stderr; ``netns`` and ``cgroup`` (a path below each controller) exist or are created for this container
    only. ``cpu_weight`` is relative (100 is normal): background work yields to serving.
    """

    id: str
    directory: Path
    root: Path
    args: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    hostname: str
    netns: Path
    cgroup: str
    memory_bytes: int
    cpus: float
    log: Path
    mounts: tuple[SandboxMount, ...] = ()
    cpu_weight: int = 100
    host_changes_volumes: bool = False
    annotations: dict[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """OCI verbs plus checkpoint and restore. Every call has a deadline and may be run in any thread."""

    def identity(self) -> RuntimeIdentity:
        """Name, version and flags of the installed program."""
        ...

    def create(self, sandbox: Sandbox) -> int:
        """Make the container without running anything in it; returns the sandbox's pid on the host."""
        ...

    def start(self, sandbox: Sandbox) -> None:
        """Run the container's command in a created container."""
        ...

    def restore(self, sandbox: Sandbox, image: Path) -> None:
        """Fill a *created* container with the memory in folder ``image``, and let it run."""
        ...

    def checkpoint(self, sandbox_id: str, image: Path) -> None:
        """Write the container's memory to the empty folder ``image``. The container ends."""
        ...

    def signal(self, sandbox_id: str, name: str) -> None:
        """Send a signal (``"SIGTERM"``) to the container's first process."""
        ...

    def delete(self, sandbox_id: str, *, force: bool = True) -> None:
        """Remove the container and its state. Deleting what does not exist is fine."""
        ...

    def exec_argv(self, sandbox_id: str, command: list[str], *, tty: bool) -> list[str]:
        """The host command line that runs ``command`` inside the container."""
        ...
