"""Sealing snapshots anew after a change of keys, here and in the region, so that an old key can go.

Snapshot by snapshot: each is replaced in one step, by the same memory sealed with the first key, and what is
done is not done again. So it may be stopped, or killed, at any moment, and is run again to go on. What it
cannot do is left as it is, and told.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.chunks.chunk import CHUNK_BYTES, is_zero
from glowplug.image.job import Progress
from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.snapshot.canonical import canonical_json, parse_json
from glowplug.snapshot.durable import read_limited, write_durably
from glowplug.snapshot.manifest import Manifest, ManifestDraft, invalid
from glowplug.snapshot.region import RegionSnapshots
from glowplug.snapshot.stored import Snapshot
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, KeyMissing, NotFound
from glowplug.types.replica import SnapshotStatus

_MAX_NOTE_BYTES = 1 << 20


@dataclass(frozen=True)
class SnapshotResealing:
    """``note`` remembers, should this be killed, what the region has still to forget."""

    moves: SnapshotMoves
    note: Path

    def run(self, progress: Progress, cancelled: threading.Event) -> dict[str, Any]:
        """``{"resealed": ids, "region": ids, "left": [{"id", "reason"}]}``.

        Raises InvalidInput without keys, Conflict if it was ``cancelled``.
        """
        keys = self.moves.snapshots.manifests.keys
        if keys is None:
            raise InvalidInput(
                "This node has no snapshot keys.",
                remedy="`glowplug snapshot keygen FILE` makes some, for `glowplug up --snapshot-keys FILE`.",
            )
        run = _Run(self, keys.first.id, progress, cancelled)
        run.here()
        region = self._region()
        if region is not None:
            run.region(region)
        return {"resealed": run.resealed, "region": run.in_region, "left": run.left}

    def _region(self) -> RegionSnapshots | None:
        try:
            return self.moves.region()
        except InvalidInput:  # this node has none
            return None


class _Run:
    """One pass, and what came of it."""

    def __init__(
        self, whole: SnapshotResealing, key_id: str, progress: Progress, cancelled: threading.Event
    ) -> None:
        self._moves = whole.moves
        self._note = whole.note
        self._key_id = key_id
        self._progress = progress
        self._cancelled = cancelled
        self.resealed: list[str] = []
        self.in_region: list[str] = []
        self.left: list[dict[str, str]] = []

    def here(self) -> None:
        views = self._moves.snapshots.list()
        for number, view in enumerate(views):
            self._step(f"sealing {view.id}", number / len(views))
            if view.status is SnapshotStatus.GOOD and view.sealed_with == self._key_id:
                continue
            if view.status is not SnapshotStatus.GOOD:
                self.left.append({"id": view.id, "reason": view.reason or view.status.value})
                continue
            try:
                self._reseal(self._moves.snapshots.get(view.id))
            except (GlowplugError, OSError) as problem:
                self._leave(view.id, problem)

    def region(self, region: RegionSnapshots) -> None:
        ids = region.ids()
        for number, snapshot_id in enumerate(ids):
            self._step(f"sealing {snapshot_id} in the region", number / len(ids))
            try:
                self._reseal_in_region(region, snapshot_id)
            except (GlowplugError, OSError) as problem:
                self._leave(snapshot_id, problem)
        self._forget_superseded(region)

    def _reseal_in_region(self, region: RegionSnapshots, snapshot_id: str) -> None:
        there = region.look(snapshot_id)
        if there is None:
            return
        if isinstance(there, KeyMissing):
            raise there
        if there.sealed_with == self._key_id:
            return
        if not self._is_good_here(snapshot_id):
            if there.sealed_with is None:
                raise InvalidInput(
                    f"Snapshot {snapshot_id} is plain in the region, and not on this node: whoever can write "
                    "there could have made it.",
                    remedy=f"`glowplug snapshot rm --region {snapshot_id}`; who captures it brings it back.",
                )
            self._reseal(self._moves.take_over(there, self._moves.job(_ignore, self._cancelled)))
        self._remember(self._superseded() | {there.manifest.content})
        self._moves.push(snapshot_id, _ignore, self._cancelled)
        self.in_region.append(snapshot_id)

    def _is_good_here(self, snapshot_id: str) -> bool:
        """Whether there is one that can take the place of the region's."""
        try:
            view = self._moves.snapshots.view(snapshot_id)
        except NotFound:
            return False
        return view.status is SnapshotStatus.GOOD and view.sealed_with == self._key_id

    def _reseal(self, snapshot: Snapshot) -> None:
        """Copy it within memory, seal the copy, and put it in the place of the old one with its record."""
        old = snapshot.manifest
        with snapshot.pin():
            folder = snapshot.open()
            with self._moves.snapshots.begin(old.snapshot_key, old.total_bytes) as staging:
                for name in old.files:
                    self._copy(folder / name, staging.files / name)
                sealed = staging.seal(_draft_of(old))
                if sealed.manifest.files != old.files:
                    raise invalid(old.id, "are not what was captured", file="its bytes")
                snapshot.status.save(staging.path)
                staging.publish()
        self.resealed.append(old.id)

    def _copy(self, source: Path, target: Path) -> None:
        """Holes stay holes."""
        with source.open("rb", buffering=0) as plain, target.open("xb") as copy:
            while body := plain.read(CHUNK_BYTES):
                self._check()
                if is_zero(body):
                    copy.seek(len(body), os.SEEK_CUR)
                else:
                    copy.write(body)
            copy.truncate(plain.tell())

    def _superseded(self) -> set[str]:
        try:
            found = parse_json(read_limited(self._note, _MAX_NOTE_BYTES))
        except (FileNotFoundError, ValueError):  # nothing is noted: what stays costs room, and nothing else
            return set()
        return {str(digest) for digest in found}

    def _remember(self, digests: set[str]) -> None:
        write_durably(self._note, canonical_json(sorted(digests)) + b"\n")

    def _forget_superseded(self, region: RegionSnapshots) -> None:
        """The region's old content, unless a snapshot there needs it still; its packs go with the garbage."""
        superseded = self._superseded()
        needed = set(region.contents()) if superseded else set()
        for digest in sorted(superseded - needed):
            self._step("removing what was sealed before from the region", None)
            try:
                self._moves.files.remove_from_region(digest, self._moves.job(_ignore, self._cancelled))
            except NotFound:
                pass
            except GlowplugError as problem:
                self._leave(digest[:16], problem)
                continue
            superseded.discard(digest)
        self._remember(superseded - needed)

    def _step(self, text: str, fraction: float | None) -> None:
        self._check()
        self._progress(text, fraction)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Conflict("It was stopped.", remedy="Run `glowplug snapshot reseal` again to go on.")

    def _leave(self, what: str, problem: GlowplugError | OSError) -> None:
        self._check()
        self.left.append({"id": what, "reason": str(problem)})


def _ignore(_text: str, _fraction: float | None) -> None:
    """Progress of a step that is one line of ours."""


def _draft_of(manifest: Manifest) -> ManifestDraft:
    return ManifestDraft(
        app=manifest.app,
        server=manifest.server,
        deployment=manifest.deployment,
        canary=manifest.canary,
        hook_ports=manifest.hook_ports,
        timings=manifest.timings,
        tools=manifest.tools,
        created_at=manifest.created_at,
    )
