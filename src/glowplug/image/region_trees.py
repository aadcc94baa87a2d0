"""Garbage among what a region keeps under ``images/``: file trees that nothing refers to any more.

An image is there by its name. A file tree has none: what refers to it (a snapshot's manifest) is not this
room's business, so whoever collects says what is needed. Left over are trees whose manifest was replaced or
removed, and what an interrupted push left. Their packs are freed by :meth:`glowplug.chunks.region.Region.gc`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from glowplug.chunks.region import GRACE_S, Region
from glowplug.chunks.region_condemned import Condemned
from glowplug.image.download import MANIFEST_NAME, REQUEST_TIMEOUT_S, image_key
from glowplug.image.index.image_name import is_digest
from glowplug.image.index.manifest import MAX_MANIFEST_BYTES, ImageManifest
from glowplug.image.job import Job
from glowplug.image.region_refs import refs
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, NotFound

KIND_LABEL = "dev.glowplug.kind"
"""In a file tree's configuration: what kind of one it is."""

_PREFIX = "images/"
_CONDEMNED_KEY = "gc/condemned-trees.json"


@dataclass(frozen=True)
class CollectedTrees:
    """``waiting`` are unneeded for less than the grace period."""

    removed: int
    waiting: int


def collect(
    region: Region,
    kind: str,
    needed: Callable[[], set[str]],
    job: Job,
    clock: Clock,
    grace_s: float = GRACE_S,
) -> CollectedTrees:
    """Remove the trees of this kind that nobody has needed for ``grace_s``.

    ``needed`` tells their digests; it is asked while nobody pushes, and raises if it cannot tell: nothing is
    removed in doubt. Raises Conflict while somebody pushes or collects.
    """
    objects = region.objects
    with region.collecting() as lease:
        spared = needed() | set(refs(objects).values())
        present = {info.key.removeprefix(_PREFIX).partition("/")[0] for info in objects.list(_PREFIX)}
        unneeded = []
        for digest in sorted(present - spared):
            job.check("looking for what nobody needs")
            lease.renew()
            if is_digest(digest) and _is_of_kind(region, digest, kind):
                unneeded.append(digest)
        condemned = Condemned(objects, clock, _CONDEMNED_KEY, kind)
        removable = condemned.condemn(unneeded, grace_s)
        for digest in removable:
            job.check("removing what nobody needs")
            lease.renew()
            # The manifest first: an image without one is not there.
            objects.delete([image_key(digest, MANIFEST_NAME)])
            objects.delete([info.key for info in objects.list(image_key(digest, ""))])
        return CollectedTrees(len(removable), condemned.save_without(removable))


def _is_of_kind(region: Region, digest: str, kind: str) -> bool:
    """Whether it is a tree of this kind, or nothing whole: a push that was interrupted."""
    try:
        data = region.objects.read_all(
            image_key(digest, MANIFEST_NAME), MAX_MANIFEST_BYTES, REQUEST_TIMEOUT_S
        )
        return ImageManifest.parse(data, digest).config.labels.get(KIND_LABEL) == kind
    except NotFound:
        return True
    except InvalidInput:  # nothing of ours
        return False
