"""The content store of this node and the region it belongs to, as the state directory and environment say."""

from __future__ import annotations

from glowplug.chunks.region import Region
from glowplug.chunks.remote_settings import KEPT_INDEXES, RemoteSettings
from glowplug.chunks.ssd import SsdStore
from glowplug.types.clock import SystemClock
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir

ONLY_HERE = "image:"
"""Owner of the pin that keeps content which is in no region: with the image's digest behind it."""


def open_ssd(state: StateDir) -> SsdStore:
    """The SSD tier, with the node's budget. Its caller closes it."""
    settings = RemoteSettings.from_environment()
    return SsdStore(state.chunks, budget_bytes=settings.ssd_budget_bytes, clock=SystemClock())


def open_region(state: StateDir) -> Region:
    """The region. Raises InvalidInput if none is configured."""
    objects = RemoteSettings.from_environment().objects()
    if objects is None:
        raise InvalidInput(
            "This node belongs to no region.",
            remedy="Start it with `glowplug up --region URL` (or GLOWPLUG_REGION): s3://.., gs://.., "
            "az://.., https://.., or a folder.",
        )
    return Region(objects, state.root / KEPT_INDEXES)
