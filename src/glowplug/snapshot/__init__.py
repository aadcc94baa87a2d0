"""Memory captured after initialisation: key, manifest, store, proof.

The node agent asks :class:`SnapshotStore` for what fits a :class:`SnapshotKey`, restores it while
:meth:`Snapshot.verify` reads every byte, and has :mod:`~glowplug.snapshot.canary` compare the answer; it
captures into a :class:`Staging`. This room runs no containers: it knows what snapshots are, not how they
are taken.
"""

from glowplug.snapshot.canary import CanaryAnswer
from glowplug.snapshot.key import MachineIdentity, SnapshotKey, explain_differences
from glowplug.snapshot.manifest import CaptureTimings, FileEntry, Manifest, ManifestDraft
from glowplug.snapshot.nearest import Nearest
from glowplug.snapshot.secrets_scan import FoundSecret, find_secrets, too_short_to_find
from glowplug.snapshot.staging import Staging
from glowplug.snapshot.status import RestoreStatus
from glowplug.snapshot.store import SnapshotStore
from glowplug.snapshot.stored import Snapshot

__all__ = [
    "CanaryAnswer",
    "CaptureTimings",
    "FileEntry",
    "FoundSecret",
    "MachineIdentity",
    "Manifest",
    "ManifestDraft",
    "Nearest",
    "RestoreStatus",
    "Snapshot",
    "SnapshotKey",
    "SnapshotStore",
    "Staging",
    "explain_differences",
    "find_secrets",
    "too_short_to_find",
]
