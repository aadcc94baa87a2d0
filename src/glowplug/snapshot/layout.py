"""Names inside the snapshot store: which of them are ours, and what they point at.

A finished snapshot ``snapshots/<id>`` is a symbolic link into ``.generations``, so that capturing it anew
replaces it in one atomic step while a restore still reads the old generation under its old, real path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glowplug.types.paths import StateDir

_ID = re.compile(r"sn-[0-9a-f]{16}")
_OWN = re.compile(r"(sn-[0-9a-f]{16})\.[A-Za-z0-9_.]+")
_GENERATIONS = ".generations"


def is_snapshot_id(text: str) -> bool:
    """Whether ``text`` has the form of a snapshot id, and so is safe as a file name."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Layout:
    """Paths of one store."""

    state: StateDir

    @property
    def root(self) -> Path:
        """Where finished snapshots are found by id."""
        return self.state.snapshots

    @property
    def staging(self) -> Path:
        """Captures being written (``<id>.<random>``), their locks and links not yet in place."""
        return self.state.snapshot_staging

    @property
    def generations(self) -> Path:
        """The folders that finished snapshots are links to."""
        return self.root / _GENERATIONS

    @property
    def change_lock(self) -> Path:
        """Held for the moment in which a snapshot is published, removed or its status rewritten."""
        return self.staging / "change.lock"

    def create(self) -> None:
        """Make the directories, readable by their owner only."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.staging.mkdir(mode=0o700, exist_ok=True)
        self.generations.mkdir(mode=0o700, exist_ok=True)

    def capture_lock(self, snapshot_id: str) -> Path:
        """Held by whoever is capturing ``snapshot_id``."""
        return self.staging / f"{snapshot_id}.lock"

    def link(self, snapshot_id: str) -> Path:
        """The name under which the finished snapshot is found."""
        return self.root / snapshot_id

    def link_target(self, generation: Path) -> Path:
        """What the link says, relative, so that the state directory can be moved."""
        return Path(_GENERATIONS) / generation.name

    def current(self, snapshot_id: str) -> Path | None:
        """The generation ``snapshot_id`` points at now; None unless it is one of ours."""
        try:
            target = self.link(snapshot_id).readlink()
        except OSError:  # absent, or not a link
            return None
        generation = self.generations / target.name
        is_ours = target == self.link_target(generation) and owner_of(target.name) == snapshot_id
        return generation if is_ours else None

    def ids(self) -> list[str]:
        """Ids of everything that is, or claims to be, a finished snapshot."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if is_snapshot_id(path.name))


def owner_of(name: str) -> str | None:
    """The snapshot id a name in ``.staging`` or ``.generations`` belongs to; None if it is not ours."""
    found = _OWN.fullmatch(name)
    return found.group(1) if found else None
