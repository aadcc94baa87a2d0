"""A zone's cache server: Debian's nginx with a configuration of ours, started and stopped."""

from glowplug.chunks.zone_cache.cache import ZoneCache, ZoneCacheStatus

__all__ = ["ZoneCache", "ZoneCacheStatus"]
