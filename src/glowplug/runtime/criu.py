"""CRIU as ``runc`` calls it: finding it, what it is told, and what its log says really happened.

``runc checkpoint`` and ``runc restore`` do the part that needs a container's description (mounts, namespaces,
cgroups); what they have no flag for goes into a configuration file, which CRIU reads last and which so wins.
The log is the judge: a command whose log does not end in success has failed, whatever its exit code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glowplug.runtime.command import find_program
from glowplug.types.errors import RuntimeFailed

SERIES = "4.2"
"""What is tested. Debian 12's 3.17 refuses newer kernels ("Unexpected rt vDSO area bounds")."""

# Deleted files that a process still has open are copied into the image up to this size.
_GHOST_LIMIT_BYTES = 1 << 30
_FREEZE_TIMEOUT_S = 60
COMMON_OPTIONS = (
    "tcp-established",
    "skip-in-flight",
    "network-lock skip",  # nobody can reach the namespace, and iptables may not be installed
    "file-locks",
    "link-remap",  # a file whose name was removed while another name or a mapping keeps it (POSIX semaphores)
    f"ghost-limit {_GHOST_LIMIT_BYTES}",
    "ext-unix-sk",
    f"timeout {_FREEZE_TIMEOUT_S}",
)

_MAX_LOG_BYTES = 4 << 20
_MAX_COMPLAINTS = 10
_MAX_MESSAGE_CHARACTERS = 500
_COMPLAINT = re.compile(r"^\([\d.]+\)\s+(?:\d+:\s+)?Error \(([^)]*)\):\s*(.+)$", re.MULTILINE)
# It tries to raise its own limit of open files, which some hosts refuse, and goes on without.
_HARMLESS = re.compile(r"^rlimit: Can't setup RLIMIT_NOFILE for self")
_SUMMARY = re.compile(r"(Dumping|Restoring) FAILED|failed with -?\d+$|exited, status=")
_ANY_REMEDY = '`glowplug doctor` checks CRIU; runtime="runsc" can capture more kinds of servers.'
_CAPTURE_AGAIN = "and capture the snapshot again."
_REMEDIES = (
    (
        "Can't retrieve FDs",
        "The server holds a descriptor that cannot be passed on, such as one of io_uring.",
    ),
    (r"anon_inode|Unsupported|unsupported", 'Turn that feature of the server off, or use runtime="runsc".'),
    ("Can't fork for .*File exists", "The process id is taken: a copy needs a pid namespace of its own."),
    (
        r"bad (file )?(size|mode)|build-id",
        f"A file that the memory refers to has changed: put it back, {_CAPTURE_AGAIN}",
    ),
    (
        "Can't open file|Can't link|link_remap",
        f"A file the memory refers to is gone: keep open files in the image or in /tmp, {_CAPTURE_AGAIN}",
    ),
    ("No space left", "Free some space (`glowplug snapshot rm ID`)."),
    ("Cannot allocate memory", "Raise memory= of the server."),
    ("v[dD][sS][oO]", f"This CRIU is too old for the kernel: scripts/setup_criu.sh builds {SERIES}."),
)


def find_criu() -> Path:
    """``GLOWPLUG_CRIU``, our own tools folder, or PATH. Raises SystemUnfit."""
    remedy = f"scripts/setup_criu.sh builds {SERIES}; GLOWPLUG_CRIU names another."
    return find_program("criu", "CRIU", variable="GLOWPLUG_CRIU", remedy=remedy)


@dataclass(frozen=True, order=True)
class OutsideFile:
    """A file of the host that a container has open (its log), as CRIU names it: ``file[mount:inode]``."""

    mount_id: int
    inode: int

    @property
    def name(self) -> str:
        """How dump and restore refer to it."""
        return f"file[{self.mount_id:x}:{self.inode:x}]"


def dump_options(outside: Iterable[OutsideFile]) -> str:
    """The configuration for a dump of a container that has these files of the host open."""
    return _lines([*COMMON_OPTIONS, *(f"external {file.name}" for file in outside)])


def restore_options(outside: Iterable[OutsideFile], descriptor: int) -> str:
    """The configuration for a restore, which puts what ``descriptor`` of CRIU is in place of these files."""
    return _lines([*COMMON_OPTIONS, *(f"inherit-fd fd[{descriptor}]:{file.name}" for file in outside)])


def check_log(what: str, log: Path, subject: str, *, success: str, cause: RuntimeFailed | None) -> None:
    """Raise RuntimeFailed, with CRIU's own words, unless ``cause`` is None and ``log`` ends in ``success``.

    ``cause`` is how the command that called CRIU failed; it is raised again if CRIU's log has nothing to say.
    """
    text = _read_end(log)
    complaints = [found for found in _complaints(text) if not _HARMLESS.match(found)]
    if cause is None and success in text and not complaints:
        return
    reasons = [one for one in complaints if not _SUMMARY.search(one)] or complaints
    if not reasons:
        if cause is not None:
            raise cause
        reasons = [f"its log does not say {success!r}"]
    reason = reasons[0][:_MAX_MESSAGE_CHARACTERS]
    raise RuntimeFailed(
        f"`{what}` failed: {reason}",
        remedy=next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason)), _ANY_REMEDY),
        sandbox=subject,
        said=complaints[-_MAX_COMPLAINTS:],
    ) from cause


def _complaints(text: str) -> list[str]:
    # The expression tries every line of thousands: milliseconds for which a restore is waited.
    return [match[2] for match in _COMPLAINT.finditer(text)] if "Error (" in text else []


def _lines(options: Iterable[str]) -> str:
    return "".join(f"{option}\n" for option in options)


def _read_end(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
