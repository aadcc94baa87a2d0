"""Which kept content some snapshot still needs, and the end of what none does.

Content is kept before the manifest that names it is written, so whoever makes one holds a lock meanwhile
(:meth:`ContentReferences.adding`), and only who holds it alone may drop content. What cannot be dropped now,
because somebody adds or still reads it, is dropped by the next removal, capture or sweep.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.snapshot.content import SnapshotContent
from glowplug.snapshot.durable import read_limited
from glowplug.snapshot.layout import Layout, owner_of
from glowplug.snapshot.locks import own_directory, share_directory
from glowplug.snapshot.manifest import MANIFEST_NAME, invalid
from glowplug.snapshot.sealing.manifests import MAX_STORED_BYTES, content_named
from glowplug.types.errors import DeadlineExceeded, GlowplugError, SnapshotInvalid

_log = logging.getLogger(__name__)

_ADDING_TIMEOUT_S = 60.0
"""Dropping the content of a snapshot of many GB takes seconds."""

_POLL_INTERVAL_S = 0.01


class ContentReferences:
    """What the manifests below ``layout`` say that they need of ``content``."""

    def __init__(self, layout: Layout, content: SnapshotContent) -> None:
        self._layout = layout
        self._content = content

    @contextmanager
    def adding(self, snapshot_id: str) -> Iterator[None]:
        """Hold from before content is kept until the manifest that names it is written.

        Raises DeadlineExceeded if others clean up all the time.
        """
        deadline = time.monotonic() + _ADDING_TIMEOUT_S
        while (held := share_directory(self._layout.staging)) is None:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"Snapshot {snapshot_id} could not be kept: old content was being removed for "
                    f"{_ADDING_TIMEOUT_S:g} s.",
                    remedy="Look for a disk that hangs (`dmesg`); the next cold start captures again.",
                    snapshot_id=snapshot_id,
                    stage="snapshot_store",
                )
            time.sleep(_POLL_INTERVAL_S)
        with held:
            yield

    def drop_unneeded(self) -> None:
        """Drop what no snapshot needs, unless somebody is adding. Never raises: there is a next time."""
        held = own_directory(self._layout.staging)
        if held is None:
            return
        with held:
            try:
                unneeded = self._content.digests() - self._needed()
                for digest in sorted(unneeded):
                    self._content.drop(digest)
            except (GlowplugError, OSError) as problem:
                _log.warning("content that no snapshot needs stays for now: %s", problem)

    def _needed(self) -> set[str]:
        needed: set[str] = set()
        for folder in [*self._layout.generations.iterdir(), *self._layout.staging.iterdir()]:
            snapshot_id = owner_of(folder.name)
            if snapshot_id is None or not folder.is_dir() or folder.is_symlink():
                continue
            try:
                needed.add(content_named(read_manifest(folder, snapshot_id), snapshot_id))
            except SnapshotInvalid as problem:  # nobody can restore it
                _log.debug("%s", problem.message)
        return needed


def read_manifest(directory: Path, snapshot_id: str) -> bytes:
    """The manifest, as it is stored, of a generation or of a finished capture. Raises SnapshotInvalid."""
    try:
        return read_limited(directory / MANIFEST_NAME, MAX_STORED_BYTES)
    except FileNotFoundError as error:
        raise invalid(snapshot_id, "is missing") from error
    except OSError as error:
        raise invalid(snapshot_id, f"cannot be read: {error.strerror}") from error
