"""The control plane's own router, as a place for requests: what no replica known here can take goes there.

It holds requests, wakes and starts replicas, and knows what a table cannot hold. To a request it is a replica
like any other, of last resort.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from pathlib import Path
from urllib.parse import urlsplit

from glowplug.control.channel import ReplicaChannel
from glowplug.control.replica_entry import Replica
from glowplug.node.address import LocalNode
from glowplug.types.clock import Clock
from glowplug.types.replica import Endpoint, ReplicaState, ReplicaView

log = logging.getLogger(__name__)

# Control has deadlines of its own, up to a day for an answer: this is beyond them.
_SILENCE_LIMIT_S = 90_000.0


class Upstream:
    """Control at the address that this node joined at, or that it told last; at the other when one fails.

    Owns its connections: :meth:`close` them.
    """

    def __init__(self, joined_url: str, clock: Clock) -> None:
        self.handed_on = 0
        """Requests that went there."""
        self.url = joined_url
        """Where they go now."""
        self._joined_url = joined_url
        self._told_url = joined_url
        self._clock = clock
        self._suspect_until_s: dict[str, float] = {}
        self._places: weakref.WeakSet[Replica] = weakref.WeakSet()
        self._channels = {joined_url: _open(joined_url)}

    @property
    def is_suspect(self) -> bool:
        """It took no connection a moment ago."""
        return self._is_suspect(self.url)

    def place(self, app: str, server: str) -> Replica:
        """Control, as a replica of that server."""
        view = ReplicaView(
            id="control", app=app, server=server, deployment_id="", state=ReplicaState.READY, created_at=0.0
        )
        made = Replica(view, "control", channel=self._channels[self.url], is_router=True)
        self._places.add(made)
        return made

    def suspect(self, seconds: float) -> None:
        """It took no connection, or broke one."""
        self._suspect_until_s[self.url] = self._clock.monotonic() + seconds
        other = self._joined_url if self.url == self._told_url else self._told_url
        if not self._is_suspect(other):
            self._use(other)

    async def was_told(self, url: str | None) -> None:
        """Control says where it is, now that it leads."""
        if url is None or url == self._told_url:
            return
        left, self._told_url = self._told_url, url
        self._use(url)
        if left not in (self._joined_url, url):
            self._suspect_until_s.pop(left, None)
            await self._channels.pop(left).close()  # who led there leads no more

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    def _is_suspect(self, url: str) -> bool:
        return self._clock.monotonic() < self._suspect_until_s.get(url, 0.0)

    def _use(self, url: str) -> None:
        if url == self.url:
            return
        log.info("requests that nothing here can take go to %s", url)
        self.url = url
        if url not in self._channels:
            self._channels[url] = _open(url)
        for place in self._places:
            place.channel = self._channels[url]


def _open(url: str) -> ReplicaChannel:
    parts = urlsplit(url)
    endpoint = Endpoint(
        host=parts.hostname or "", port=parts.port or (443 if parts.scheme == "https" else 80)
    )
    here = LocalNode(Path())  # connected to from this machine, through no gateway
    return ReplicaChannel(
        "control", endpoint, here, silence_limit_s=_SILENCE_LIMIT_S, scheme=parts.scheme, is_far=True
    )
