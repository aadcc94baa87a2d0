"""Which region and zone this machine belongs to, from its environment. Checked as a whole, before it is used.

``GLOWPLUG_REGION``     where everything is: s3://.., gs://.., az://.., https://.., or a folder
``GLOWPLUG_ZONE``       caches on the way there: http://host:port, several separated by commas
``GLOWPLUG_SSD_BYTES``  how much of this machine's disk chunks may take: ``200G``, ``1.5T``, or plain bytes
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from glowplug.chunks.http_address import HttpAddress
from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.object_keys import CLOUDS
from glowplug.chunks.objects import Objects, WriteObjects
from glowplug.chunks.region import Region
from glowplug.chunks.zone import ZoneObjects
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir

REGION, ZONE, SSD_BYTES = "GLOWPLUG_REGION", "GLOWPLUG_ZONE", "GLOWPLUG_SSD_BYTES"
LEAST_SSD_BYTES = 64 << 20
KEPT_INDEXES = "region-indexes"  # below the state directory: what the region's packs hold
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?|\d{1,18})\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class RemoteSettings:
    """``region_url`` is None for a machine on its own; ``ssd_budget_bytes`` is None for no limit."""

    region_url: str | None = None
    zone_urls: tuple[str, ...] = ()
    ssd_budget_bytes: int | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> RemoteSettings:
        """Raises InvalidInput naming the variable that is wrong, and how it should look."""
        env = os.environ if environ is None else environ
        region_url = env.get(REGION, "").strip() or None
        zone_urls = tuple(url for part in env.get(ZONE, "").split(",") if (url := part.strip()))
        try:
            if region_url is not None:
                _check_region(region_url)
            _check_zone(zone_urls)
            ssd_budget_bytes = _size_bytes(env.get(SSD_BYTES, "").strip())
        except _Wrong as wrong:
            raise InvalidInput(f"{wrong.variable}: {wrong.why}", remedy=wrong.remedy) from wrong
        return cls(region_url, zone_urls, ssd_budget_bytes)

    def objects(self) -> WriteObjects | None:
        """The region's objects; None without a region. Its caller closes them."""
        if self.region_url is None:
            return None
        if self.region_url.startswith(("http://", "https://")):
            return HttpObjects(self.region_url)
        # obstore is 20 MB of memory: a machine without such a region does without.
        from glowplug.chunks.region_objects import ObstoreObjects

        return ObstoreObjects(self.region_url)

    def region(self) -> Region | None:
        """The region; None if there is none."""
        objects = self.objects()
        kept = StateDir.from_environment().root / KEPT_INDEXES
        return None if objects is None else Region(objects, kept)

    def tiers(self) -> list[Objects]:
        """What to ask for content that is not here, in this order. Empty for a machine on its own."""
        region = self.objects()
        found: list[Objects] = []
        if self.zone_urls:
            found.append(ZoneObjects(self.zone_urls, region))
        if region is not None:
            found.append(region)
        return found


class _Wrong(Exception):
    def __init__(self, variable: str, why: str, remedy: str) -> None:
        super().__init__(why)
        self.variable, self.why, self.remedy = variable, why, remedy


def _check_region(url: str) -> None:
    if url.startswith(("http://", "https://")):
        _check_address(REGION, url)
        return
    parts = urlsplit(url)
    is_folder = url.startswith("/") or (parts.scheme == "file" and parts.path.startswith("/"))
    if not is_folder and not (parts.scheme in CLOUDS and parts.netloc):
        raise _Wrong(
            REGION,
            f"{url[:200]!r} is no place for objects.",
            "Use s3://bucket/prefix, gs://.., az://.., https://.., file:///.. or a folder's absolute path.",
        )


def _check_zone(urls: tuple[str, ...]) -> None:
    for url in urls:
        _check_address(ZONE, url)
    if len(set(urls)) != len(urls):
        raise _Wrong(ZONE, "it names a server twice.", "Name each cache once, separated by commas.")


def _check_address(variable: str, url: str) -> None:
    try:
        HttpAddress.parse(url)
    except InvalidInput as problem:
        raise _Wrong(variable, problem.message, problem.remedy) from problem


def _size_bytes(text: str) -> int | None:
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    size_bytes = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if size_bytes < LEAST_SSD_BYTES:
        raise _Wrong(
            SSD_BYTES,
            f"{text[:50]!r} is not a size, or less than {LEAST_SSD_BYTES >> 20} MiB.",
            "Write for example 200G, 1.5T, or bytes.",
        )
    return size_bytes
