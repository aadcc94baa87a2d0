"""Images on the nodes that joined: made ready in the background, at the latest before a replica starts.

A deployment's images are made on the machine of the control plane; that gives them their ids. Another node
makes them from the same specification: out of a registry, out of the region, by building. One that cannot
(a folder that only the first machine has), or that comes to another id, is not given replicas of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing

from glowplug.control.node_link import NodeLink
from glowplug.control.timings import Timings
from glowplug.node.answers import NoAnswer
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, GlowplugError, NotFound, Unavailable
from glowplug.types.spec import ImageSpec

log = logging.getLogger(__name__)

_AT_ONCE = 8
"""So many images are made on a node before more are begun in the background; no replica waits for that."""


class ImageCare:
    """One make of one image on one node at a time, whoever waits for it. :meth:`close` ends them."""

    def __init__(self, clock: Clock, timings: Timings) -> None:
        self._clock = clock
        self._timings = timings
        self._making: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._busy: Counter[str] = Counter()
        """How many of these are on a node."""
        self._refused: dict[tuple[str, str], tuple[float, str]] = {}

    def why_not(self, node: str, image_id: str) -> str | None:
        """Why nothing of this image should be placed there for now."""
        again_at_s, why = self._refused.get((node, image_id), (0.0, ""))
        return why if self._clock.monotonic() < again_at_s else None

    def is_there(self, link: NodeLink, image_id: str) -> bool:
        """Whether it was made ready on the node."""
        return link.is_own or image_id in link.ready_images

    def prepare(self, link: NodeLink, wanted: Mapping[str, ImageSpec]) -> None:
        """See to these images, by id, in the background: a few at once, none that failed lately."""
        if wanted.keys() <= link.ready_images:
            return
        for image_id, spec in wanted.items():
            if self._busy[link.name] >= _AT_ONCE:
                return
            if image_id not in link.ready_images and self.why_not(link.name, image_id) is None:
                self._begin(link, spec, image_id)

    async def ensure(self, link: NodeLink, spec: ImageSpec, image_id: str) -> None:
        """Return when the image is ready on the node. Raises a GlowplugError."""
        if not self.is_there(link, image_id):
            await asyncio.shield(self._begin(link, spec, image_id))

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, link: NodeLink, spec: ImageSpec, image_id: str) -> asyncio.Task[None]:
        key = (link.name, image_id)
        task = self._making.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._make(link, spec, image_id))
            self._making[key] = task
            self._busy[link.name] += 1
            task.add_done_callback(lambda done: self._made(key, done))
        return task

    def _made(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._making.pop(key, None)
        self._busy[key[0]] -= 1
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, NoAnswer):
            log.warning("node %s: %s", key[0], error)
        elif isinstance(error, GlowplugError):
            why = f"image {key[1]} cannot be made ready there: {error.message}"
            self._refused[key] = (self._clock.monotonic() + self._timings.image_retry_s, why)
            log.warning("node %s: %s", key[0], why)
        elif error is not None:
            log.error("making image %s ready on node %s broke", key[1], key[0], exc_info=error)
        else:
            self._refused.pop(key, None)

    async def _make(self, link: NodeLink, spec: ImageSpec, image_id: str) -> None:
        try:
            await link.client.image(image_id)
        except NotFound:
            await self._build(link, spec, image_id)
        link.ready_images.add(image_id)

    async def _build(self, link: NodeLink, spec: ImageSpec, image_id: str) -> None:
        log.info("making image %s ready on node %s", image_id, link.name)
        made: str | None = None
        async with aclosing(link.client.build_image(spec)) as events:
            async for event in events:
                if event.error is not None:
                    raise GlowplugError.from_dict(event.error.model_dump())
                if event.image is not None:
                    made = event.image.id
        if made is None:
            raise Unavailable(
                f"Node {link.name} ended making an image without a result.",
                remedy="See logs/agent.log on that node.",
            )
        if made != image_id:
            raise Conflict(
                f"On node {link.name} the same image has another id ({made}).",
                remedy="Its content differs between the machines: use one from a registry or the region.",
                node=link.name,
            )
