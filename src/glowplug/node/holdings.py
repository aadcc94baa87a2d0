"""What this node has that makes a start here quicker: told to the control plane, which places by it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping

from glowplug.image.node_images import NodeImages
from glowplug.snapshot.key import MachineIdentity
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import (
    HOLDINGS_FRESH_S,
    MAX_HELD,
    HeldSnapshot,
    ImageView,
    NodeHoldings,
    SnapshotStatus,
    SnapshotView,
)

_MACHINE_FIELDS = ("cpu_model", "cpu_features", "kernel")


class Holdings:
    """Reads what is on the disk, at most every few seconds however often it is asked. Thread-safe."""

    def __init__(
        self, snapshots: SnapshotStore, images: NodeImages, machine: MachineIdentity, clock: Clock
    ) -> None:
        self._snapshots = snapshots
        self._images = images
        self._machine = _kind_of({name: getattr(machine, name) for name in _MACHINE_FIELDS})
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at_s: float | None = None
        self._known = NodeHoldings()

    def read(self) -> NodeHoldings:
        """What is here. Blocks."""
        with self._lock:
            now_s = self._clock.monotonic()
            if self._read_at_s is None or now_s - self._read_at_s >= HOLDINGS_FRESH_S:
                self._known = self._look()
                self._read_at_s = self._clock.monotonic()
            return self._known

    def _look(self) -> NodeHoldings:
        good = [view for view in self._snapshots.list() if view.status is SnapshotStatus.GOOD]
        good.sort(key=lambda view: -(view.used_at or view.created_at))
        images = sorted(self._images.store.list(), key=lambda view: (not view.in_use, -view.created_at))
        return NodeHoldings(
            machine=self._machine,
            snapshots=[_held(view) for view in good[:MAX_HELD]],
            images={view.id: self._here_bytes(view) for view in images[:MAX_HELD]},
        )

    def _here_bytes(self, view: ImageView) -> int:
        """Of an image that is mounted lazily, what has come so far."""
        if view.digest is None:
            return view.bytes
        try:
            return self._images.index(view.digest).here_bytes
        except GlowplugError:  # being removed
            return 0


def _held(view: SnapshotView) -> HeldSnapshot:
    return HeldSnapshot(
        id=view.id,
        servers=view.servers,
        image_id=view.key_fields.get("image", ""),
        machine=_kind_of(view.key_fields),
        bytes=view.bytes,
        here_bytes=view.here_bytes,
        is_in_region=view.is_in_region,
    )


def _kind_of(fields: Mapping[str, str]) -> str:
    """A name for machines whose memory images fit each other, as far as the machine decides."""
    text = "\0".join(fields.get(name, "") for name in _MACHINE_FIELDS)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
