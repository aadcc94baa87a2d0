"""Where the bytes of snapshots are: a port, because this room knows nothing of chunks, mounts and regions.

The files of a snapshot are one immutable set, named by a digest that covers all of them. The node's adapter
is :class:`glowplug.image.file_trees.FileTrees`, which keeps them as images are kept; tests have one that
keeps folders (``tests/snapshot/folder_content.py``), and one contract test suite runs against both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from glowplug.types.content import ContentUsage, Fetching, KeptFiles, TierRead


class SnapshotContent(Protocol):
    """Sets of files, by digest. Safe from several threads and processes."""

    def capture_folder(self, staged: Path, expected_bytes: int) -> AbstractContextManager[Path]:
        """Where about ``expected_bytes`` that are to be kept may be written: ``staged``, or elsewhere.

        Elsewhere it is gone after the block. Raises ResourceExhausted or SystemUnfit.
        """
        ...

    def keep(
        self, folder: Path, names: Sequence[str], cuts: Mapping[str, Sequence[int]] | None = None
    ) -> KeptFiles:
        """Take over these regular files of ``folder``, durably; the folder may go afterwards.

        They may be gone when this returns. ``cuts`` are the lengths of the chunks of files that are cut at
        pages, if their content does not tell. Keeping what is kept already is fine. Raises ResourceExhausted,
        or Conflict while others clean up.
        """
        ...

    def using(self, digest: str) -> AbstractContextManager[None]:
        """What :meth:`open` gave inside the block is valid until its end."""
        ...

    def open(self, digest: str) -> Path:
        """A folder with exactly these files, to read only; quick where nothing changed. Within :meth:`using`.

        Reading may fetch from elsewhere; what cannot be had right is an I/O error, never other bytes, unless
        the disk itself gives them: whoever restores compares hashes. Raises NotFound, InvalidInput (damaged),
        KeyMissing, ResourceExhausted, Unavailable or SystemUnfit.
        """
        ...

    def drop(self, digest: str) -> None:
        """Forget it and free what nothing else needs; unknown ones are fine. Raises Conflict while in use."""
        ...

    def drop_damage(self, digest: str) -> bool:
        """Something read was wrong: check every byte here, forget the wrong ones.

        Whether the set is good again, or can be completed from the region.
        """
        ...

    def digests(self) -> set[str]:
        """Everything that was kept and not dropped."""
        ...

    def usage(self, digest: str) -> ContentUsage:
        """Where its bytes are; of an unknown one, nowhere."""
        ...

    def fetched(self, digest: str) -> dict[str, TierRead]:
        """What came from other machines so far, by tier; quick, never raises, and empty if nobody counts."""
        ...

    def chunks(self, digest: str) -> int:
        """How many chunks its files are in; quick, never raises, and 0 if nobody counts."""
        ...

    def note_use(self, digest: str) -> None:
        """It was used just now: of what may go when room is needed, it goes last; never raises."""
        ...

    def fetching(self) -> Fetching:
        """What comes from other machines now, for all sets together; quick, never raises."""
        ...

    def give_up(self, digest: str) -> None:
        """Nobody waits any more: reads of what is not here fail for a few seconds; never raises."""
        ...
