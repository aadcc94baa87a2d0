"""The blobs that are attached: opened, checked, with what is known of their chunks. Attached on first use.

Nothing here needs to survive: a file number that the kernel remembers from an earlier server leads back to
its blob through the image folders.
"""

from __future__ import annotations

import threading

from glowplug.image.lazy.blob import Blob, digests, node_of, open_blob
from glowplug.image.lazy.fuse_pump import FusePump
from glowplug.types.errors import Conflict, NotFound
from glowplug.types.paths import StateDir


class AttachedBlobs:
    """Blobs by digest and by node number. Safe to use from many threads; finding an attached one is quick."""

    def __init__(self, state: StateDir, pump: FusePump | None = None) -> None:
        """``pump`` answers what it can of those that are attached."""
        self._state = state
        self._pump = pump
        self._lock = threading.Lock()
        self._by_digest: dict[str, Blob] = {}
        self._by_node: dict[int, Blob] = {}

    def attach(self, digest: str) -> Blob:
        """Open it unless it is. Raises NotFound, InvalidInput for a damaged folder, Conflict, or OSError."""
        blob = self._by_digest.get(digest)
        if blob is not None:
            return blob
        with self._lock:
            blob = self._by_digest.get(digest)
            if blob is None:
                blob = open_blob(self._state, digest)
                other = self._by_node.get(blob.node)
                if other is not None:
                    raise _collision(digest, other.digest)
                self._by_digest[digest] = blob
                self._by_node[blob.node] = blob
                if self._pump is not None:
                    self._pump.attach(blob)
        return blob

    def detach(self, digest: str) -> bool:
        """Forget it until it is used again; False if it was not attached."""
        with self._lock:
            blob = self._by_digest.pop(digest, None)
            if blob is not None:
                del self._by_node[blob.node]
                if self._pump is not None:
                    self._pump.detach(blob.node)
        return blob is not None

    def of_node(self, node: int) -> Blob:
        """The blob whose file has this number. Raises as :meth:`attach`."""
        blob = self._by_node.get(node)
        if blob is not None:
            return blob
        found = [digest for digest in digests(self._state) if node_of(digest) == node]
        if not found:
            raise NotFound(f"There is no file {node:#x}.", remedy="Mount the image again.")
        if len(found) > 1:
            raise _collision(*found[:2])
        return self.attach(found[0])

    def find(self, digest: str) -> Blob | None:
        """The blob if it is attached."""
        return self._by_digest.get(digest)

    def all(self) -> list[Blob]:
        """What is attached now."""
        with self._lock:
            return list(self._by_digest.values())

    def names(self) -> list[str]:
        """Digests of all that could be attached, in order."""
        return sorted(digests(self._state))


def _collision(digest: str, other: str) -> Conflict:
    return Conflict(
        f"Images {digest} and {other} begin alike, so only one of them can be served.",
        remedy="Remove one of them.",
        digest=digest,
    )
