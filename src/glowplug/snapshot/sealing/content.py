"""Content that is sealed: files are sealed before they are kept, and opened into memory while they are used.

Stands before the node's own content store and is one itself, a
:class:`~glowplug.snapshot.content.SnapshotContent`. What was kept without keys is shown as it is.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glowplug.chunks.chunk import aligned
from glowplug.snapshot.content import SnapshotContent
from glowplug.snapshot.durable import read_limited
from glowplug.snapshot.sealing.files import open_files, seal_file
from glowplug.snapshot.sealing.keys import KeyRing
from glowplug.snapshot.sealing.memory_folder import available_bytes, memory_folder
from glowplug.snapshot.sealing.table import (
    MAX_TABLE_BYTES,
    TABLE_NAME,
    altered,
    decode_table,
    encode_table,
    sealed_name,
)
from glowplug.types.content import ContentUsage, Fetching, KeptFiles, TierRead

_SEALED_FOLDER = ".sealed"
_CAPTURE_SHARE = 2
"""A capture may fill half of what is available: the server that is captured needs as much."""


@dataclass
class _Use:
    """Content that ``users`` use; it is in ``folder`` once one has opened it, until ``closing`` is run."""

    users: int = 0
    folder: Path | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: ExitStack = field(default_factory=ExitStack)


class SealedContent:
    """``below`` keeps the sealed files; what is plain lies in memory, in folders in ``memory``.

    Safe from several threads. Copies of one snapshot that start at the same time share what is opened.
    """

    def __init__(self, below: SnapshotContent, keys: KeyRing, memory: Path) -> None:
        self._below = below
        self._keys = keys
        self._memory = memory
        self._lock = threading.Lock()
        self._uses: dict[str, _Use] = {}

    def capture_folder(self, staged: Path, expected_bytes: int) -> AbstractContextManager[Path]:
        """A folder in memory."""
        size_bytes = max(expected_bytes, available_bytes() // _CAPTURE_SHARE)
        return memory_folder(self._memory, size_bytes, f"The capture {staged.name}")

    def keep(
        self, folder: Path, names: Sequence[str], cuts: Mapping[str, Sequence[int]] | None = None
    ) -> KeptFiles:
        """Seal these files, where they lie, and keep them; they are gone afterwards, even if this raises."""
        if cuts is not None:
            raise ValueError("what is cut by somebody else cannot be sealed")
        sealed_folder = folder / _SEALED_FOLDER
        sealed_folder.mkdir(mode=0o700)
        try:
            files = []
            for number, name in enumerate(names):
                (folder / name).rename(sealed_folder / sealed_name(number))
                files.append(seal_file(sealed_folder / sealed_name(number), name, self._keys.first))
            (sealed_folder / TABLE_NAME).write_bytes(encode_table(files, self._keys.first))
            lengths = {
                sealed_name(number): [chunk.size_bytes for chunk in file.chunks]
                for number, file in enumerate(files)
            }
            return self._below.keep(sealed_folder, [*lengths, TABLE_NAME], lengths)
        finally:
            shutil.rmtree(sealed_folder)

    @contextmanager
    def using(self, digest: str) -> Iterator[None]:
        """What is opened inside goes from memory when its last user is done."""
        with self._lock:
            use = self._uses.setdefault(digest, _Use())
            use.users += 1
        try:
            with self._below.using(digest):
                yield
        finally:
            with self._lock:
                use.users -= 1
                if use.users == 0:
                    del self._uses[digest]
                    use.closing.close()

    def open(self, digest: str) -> Path:
        """All files, authenticated, in memory."""
        with self._lock:
            use = self._uses.get(digest)
        if use is None:
            raise RuntimeError(f"{digest[:16]} is opened by somebody who does not say how long it is used")
        with use.lock:
            if use.folder is None:
                use.folder = self._open(digest, use.closing)
            return use.folder

    def drop(self, digest: str) -> None:
        """See :class:`SnapshotContent`."""
        self._below.drop(digest)

    def drop_damage(self, digest: str) -> bool:
        """See :class:`SnapshotContent`. What is sealed has names that tell whether it is what was kept."""
        return self._below.drop_damage(digest)

    def digests(self) -> set[str]:
        """See :class:`SnapshotContent`."""
        return self._below.digests()

    def usage(self, digest: str) -> ContentUsage:
        """See :class:`SnapshotContent`."""
        return self._below.usage(digest)

    def fetched(self, digest: str) -> dict[str, TierRead]:
        """See :class:`SnapshotContent`."""
        return self._below.fetched(digest)

    def chunks(self, digest: str) -> int:
        """See :class:`SnapshotContent`."""
        return self._below.chunks(digest)

    def note_use(self, digest: str) -> None:
        """See :class:`SnapshotContent`."""
        self._below.note_use(digest)

    def fetching(self) -> Fetching:
        """See :class:`SnapshotContent`."""
        return self._below.fetching()

    def give_up(self, digest: str) -> None:
        """See :class:`SnapshotContent`."""
        self._below.give_up(digest)

    def _open(self, digest: str, closing: ExitStack) -> Path:
        sealed_folder = self._below.open(digest)
        try:
            raw = read_limited(sealed_folder / TABLE_NAME, MAX_TABLE_BYTES)
        except FileNotFoundError:
            return sealed_folder  # kept without a key
        files, key = decode_table(raw, self._keys, "The content of a snapshot")
        expected = {TABLE_NAME, *(sealed_name(number) for number in range(len(files)))}
        if foreign := sorted({path.name for path in sealed_folder.iterdir()} - expected):
            raise altered(f"{foreign[0]} is not of its files")
        size_bytes = sum(aligned(file.size_bytes) for file in files)
        with ExitStack() as undo:
            folder = undo.enter_context(memory_folder(self._memory, size_bytes, "Opening a sealed snapshot"))
            try:
                open_files(sealed_folder, files, folder, key)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # of the memory
                    raise
                raise altered(f"it cannot be read: {error.strerror}") from error
            closing.push(undo.pop_all())
        return folder
