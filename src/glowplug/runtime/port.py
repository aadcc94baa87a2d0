"""The one interface behind which container runtimes stand, and what it is given.

A :class:`Runtime` turns a :class:`Sandbox` description into a running, network-isolated process tree, and
its memory into files and back. The node agent owns the order of calls; an adapter owns only the translation
to its program. Errors are :class:`~glowplug.types.errors.RuntimeFailed` or ``DeadlineExceeded``, with the
program's own last words in ``details``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glowplug.types.identity import RuntimeIdentity


@dataclass(frozen=True)
class SandboxMount:
    """A host folder or file shown inside. ``source`` may differ between copies of one snapshot."""

    source: Path
    destination: str
    read_only: bool = True


@dataclass(frozen=True)
class DeviceNode:
    """A device of the host shown inside at ``destination``. ``kind``: ``c`` or ``b``, as mknod(1) has it."""

    source: Path
    destination: str
    kind: str
    major: int
    minor: int
    access: str = "rw"


@dataclass(frozen=True)
class ContainerEdits:
    """What a container is given to use the node's devices: see :mod:`glowplug.runtime.cdi`.

    ``env`` yields to what a server says itself. ``hooks`` are those of the OCI runtime specification.
    """

    env: dict[str, str] = field(default_factory=dict)
    mounts: tuple[SandboxMount, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sandbox:
    """Everything a runtime needs to know about one container.

    ``directory`` is a folder of ours for the runtime's bundle; ``log`` collects the container's stdout and
    stderr; ``netns`` and ``cgroup`` (a path below each controller) exist or are created for this container
    only. ``cpu_weight`` is relative (100 is normal): background work yields to serving.
    ``host_changes_volumes``: files that are mounted may change from outside while it runs.
    ``extra_capabilities`` are granted, beyond the usual ones, by runtimes whose sandboxes have a kernel of
    their own; no other may grant them.
    ``merges_pages``: pages that are the same in other such sandboxes may become one (KSM), which saves memory
    and lets each of them find out, by the time that writing takes, what the others hold. For runtimes whose
    applications have private memory of the host's; gVisor's is shared memory, which the kernel cannot merge.
    ``edits`` are its devices, for runtimes that can give it any.
    ``root`` may be given missing mount points by the runtime. ``base`` is the same without the layer that
    takes those, and never written to: for a runtime that lays its own on top, as the kernel allows no third
    (``FILESYSTEM_MAX_STACK_DEPTH`` is 2, and an image index mounted from a file counts as one).
    """

    id: str
    directory: Path
    root: Path
    base: Path
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
    extra_capabilities: tuple[str, ...] = ()
    merges_pages: bool = False
    annotations: dict[str, str] = field(default_factory=dict)
    edits: ContainerEdits | None = None


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

    def restore(self, sandbox: Sandbox, image: Path) -> int:
        """Make the container from the memory in folder ``image`` and let it run; returns the pid on the host.

        To be called *instead* of :meth:`create` and :meth:`start`.
        """
        ...

    def checkpoint(self, sandbox_id: str, image: Path) -> None:
        """Write the container's memory, and what it wrote to its root, to the empty folder ``image``.

        The container ends. Connections to the outside are closed in every copy; listening sockets are kept.
        """
        ...

    def signal(self, sandbox_id: str, name: str, pid: int = 1) -> None:
        """Send a signal (``"SIGTERM"``) to the first process, or the one whose pid :meth:`exec_argv` left."""
        ...

    def delete(self, sandbox_id: str, *, force: bool = True) -> None:
        """Remove the container and its state. Deleting what does not exist is fine."""
        ...

    def exec_argv(
        self, sandbox_id: str, command: list[str], *, tty: bool, pid_file: Path | None = None
    ) -> list[str]:
        """The host command line that runs ``command`` inside the container.

        Killing it does not end the command: a pid is written to ``pid_file`` for :meth:`signal`. Whether it
        is the container's number or the host's is the runtime's affair.
        """
        ...

    def end_commands(self) -> None:
        """End what a predecessor, killed in the middle, left running; sandboxes are left alone.

        Called once, before any other call.
        """
        ...
