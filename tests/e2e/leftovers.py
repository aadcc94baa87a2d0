"""What the kernel and the disk still hold of a state directory or of some apps: nothing, if all is well.

Asks the machine, not Glowplug. Names of apps are unique in these tests, and everything of a replica (network
namespace, cgroup, folder, sandbox) is named after its app, so that tests see their own leaks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.snapshot.kept_files import content_of

from glowplug.chunks.ssd import SsdStore
from glowplug.image.file_trees import is_file_tree
from glowplug.image.index.catalog import Catalog
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
    found = _processes_with(root, "cmdline") + _mounts_with(root) + _loops_of(root)
    found += [f"folder {path}" for path in _children(state.replicas, "")]
    found += [
        f"staging {path.name}" for path in _children(state.snapshot_staging, "") if path.suffix != ".lock"
    ]
    return found


def of_storage(state: StateDir) -> list[str]:
    """What nothing on ``state`` speaks of any more: pins, indexes and generations; loop devices; memory.

    Of a state directory whose replicas are all at rest, and where nothing is being captured.
    """
    snapshots = _children(state.snapshots, "sn-")
    contents = {content_of(state, path.name) for path in snapshots}
    known = {path.resolve() for path in snapshots}
    indexes = Catalog(state).list()
    spoken_of = contents | {index.digest for index in indexes if not is_file_tree(index)}
    with SsdStore(state.chunks) as ssd:  # owners are what a pin is for (only here, mounted ..) and a digest
        found = [f"pin {owner}" for owner in ssd.pins() if owner.partition(":")[2] not in spoken_of]
    found += [f"index {index.digest}" for index in indexes if index.digest not in spoken_of]
    generations = _children(state.snapshots / ".generations", "sn-")
    found += [f"generation {path.name}" for path in generations if path not in known]
    return found + _loops_of(str(state.root)) + _memory_below(f"{state.root}/")


def _loops_of(text: str) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += [f"loop device of {path.read_text().strip()}"] if text in path.read_text() else []
        except OSError:  # it was detached
            continue
    return found


def _memory_below(root: str) -> list[str]:
    """Each tmpfs (proc(5): what comes after the dash begins with the kind)."""
    lines = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [before.split()[4] for before, _, after in lines if after.startswith("tmpfs ")]
    return [f"tmpfs {point}" for point in points if point.startswith(root)]


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
