"""Content of snapshots as plain folders: for tests of what is built upon :class:`SnapshotContent`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from blake3 import blake3

from glowplug.types.content import ContentUsage, Fetching, KeptFiles, TierRead
from glowplug.types.errors import NotFound


class FolderContent:
    """A folder per set of files below ``root``. Complete ones only, whatever is killed when."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def capture_folder(self, staged: Path, expected_bytes: int) -> AbstractContextManager[Path]:
        return nullcontext(staged)

    def keep(
        self, folder: Path, names: Sequence[str], cuts: Mapping[str, Sequence[int]] | None = None
    ) -> KeptFiles:
        self.root.mkdir(parents=True, exist_ok=True)
        digest = blake3()
        staged = Path(tempfile.mkdtemp(prefix=".new.", dir=self.root))
        try:
            for name in sorted(names):
                content = (folder / name).read_bytes()
                digest.update(f"{name} {len(content)} ".encode() + content)
                (staged / name).write_bytes(content)
            kept = self.root / digest.hexdigest()
            if kept.is_dir():
                return KeptFiles(kept.name, sum((folder / name).stat().st_size for name in names))
            staged.rename(kept)
            return KeptFiles(kept.name, 0)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def using(self, digest: str) -> AbstractContextManager[None]:
        return nullcontext()

    def open(self, digest: str) -> Path:
        if not (self.root / digest).is_dir():
            raise NotFound(f"There is no {digest}.")
        return self.root / digest

    def drop(self, digest: str) -> None:
        if (self.root / digest).is_dir():
            gone = self.root / f".gone.{os.urandom(8).hex()}"
            (self.root / digest).rename(gone)
            shutil.rmtree(gone)

    def drop_damage(self, digest: str) -> bool:
        return False  # a folder cannot tell, and there is no region

    def digests(self) -> set[str]:
        return {path.name for path in self.root.glob("[0-9a-f]*")}

    def usage(self, digest: str) -> ContentUsage:
        here_bytes = sum(path.stat().st_size for path in (self.root / digest).glob("*"))
        return ContentUsage(here_bytes, 0, (self.root / digest).is_dir())

    def fetched(self, digest: str) -> dict[str, TierRead]:
        return {}

    def chunks(self, digest: str) -> int:
        return 0

    def note_use(self, digest: str) -> None:
        pass

    def fetching(self) -> Fetching:
        return Fetching()

    def give_up(self, digest: str) -> None:
        pass
