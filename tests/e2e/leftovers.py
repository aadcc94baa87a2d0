"""What the kernel and the disk still hold of a state directory or of some apps: nothing, if all is well.

Asks the machine, not Glowplug. Names of apps are unique in these tests, and everything of a replica (network
namespace, cgroup, folder, sandbox) is named after its app, so that tests see their own leaks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from glowplug.types.paths import StateDir

_ID_CHARACTERS = 20
"""So many characters of an app's name are in its replicas' ids."""


def of_apps(state: StateDir, apps: Iterable[str]) -> list[str]:
    """Processes, namespaces, cgroups, mounts and folders of the replicas of ``apps``."""
    found: list[str] = []
    for app in apps:
        prefix = f"{app[:_ID_CHARACTERS]}-"
        found += [f"namespace {path.name}" for path in _children(Path("/run/netns"), f"gp-{prefix}")]
        found += [f"folder {path}" for path in _children(state.replicas, prefix)]
        for controller in _children(Path("/sys/fs/cgroup"), ""):
            found += [f"cgroup {path}" for path in _children(controller / "glowplug", prefix)]
        found += [f"cgroup {path}" for path in _children(Path("/sys/fs/cgroup/glowplug"), prefix)]
        found += _processes_with(f"/glowplug/{prefix}", "cgroup")
        found += _mounts_with(f"/{prefix}")
    return found


def of_state(state: StateDir) -> list[str]:
    """Processes, mounts and half-written files of everything that ever ran on ``state``."""
    root = str(state.root)
    found = _processes_with(root, "cmdline") + _mounts_with(root)
    found += [f"folder {path}" for path in _children(state.replicas, "")]
    found += [
        f"staging {path.name}" for path in _children(state.snapshot_staging, "") if path.suffix != ".lock"
    ]
    return found


def _children(folder: Path, prefix: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name.startswith(prefix)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _processes_with(text: str, file: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if text in (process / file).read_text(errors="replace"):
                command = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
                if command:  # else it has ended, and waits for the machine's init to take note
                    found.append(f"process {process.name} {command[:120]}")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _mounts_with(text: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line.split()[4]}" for line in lines if text in line.split()[4]]
