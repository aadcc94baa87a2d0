"""Which rung of the heat ladder each server stands on, for people who look.

Of what runs or is parked the control plane knows; of a server at zero, nodes say what a start would find
there. Nothing is decided by it: a start looks for itself. Bounded, as there may be hundreds of servers at
zero and as many nodes: those nodes are asked that seem to have most, and who does not answer in time is not
waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from glowplug.control.node_link import NodeLink
from glowplug.control.target import Target
from glowplug.types.errors import GlowplugError
from glowplug.types.ids import new_replica_id
from glowplug.types.replica import Heat, HeatView

log = logging.getLogger(__name__)

NODES_ASKED = 2
"""About one server."""
ASKED_AT_ONCE = 16
"""Servers that are asked about."""
WITHIN_S = 3.0
_LADDER = list(Heat)


async def server_heats(
    targets: Iterable[Target], links: Sequence[NodeLink], *, within_s: float = WITHIN_S
) -> dict[Target, HeatView | None]:
    """The hottest there is, by server; None if no node can be asked, nothing where time did not suffice."""
    found: dict[Target, HeatView | None] = {}
    turns = asyncio.Semaphore(ASKED_AT_ONCE)

    async def look(target: Target) -> None:
        async with turns:
            found[target] = await _server_heat(target, links)

    asked = list(targets)
    try:
        async with asyncio.timeout(within_s):
            await asyncio.gather(*map(look, asked))
    except TimeoutError:
        log.warning("of %d servers %d are not known to be hot or cold", len(asked), len(asked) - len(found))
    return found


async def _server_heat(target: Target, links: Sequence[NodeLink]) -> HeatView | None:
    if target.live():
        return HeatView(heat=Heat.RUNNING)
    if target.parked():
        return HeatView(heat=Heat.PARKED)
    found = await asyncio.gather(*(_on_node(target, link) for link in _promising(target, links)))
    views = [view for view in found if view is not None]
    return min(views, key=lambda view: _LADDER.index(view.heat), default=None)


def _promising(target: Target, links: Sequence[NodeLink]) -> list[NodeLink]:
    """Nodes that told of the most bytes of its snapshots, or else of its image."""
    image_id = target.version.image_id

    def order(link: NodeLink) -> tuple[int, bool]:
        here_bytes = sum(snapshot.here_bytes for snapshot in link.holdings.of(target.name, image_id))
        return (-here_bytes, image_id not in link.holdings.images)

    usable = [link for link in links if link.is_synced and not link.is_silent]
    return sorted(usable, key=order)[:NODES_ASKED]


async def _on_node(target: Target, link: NodeLink) -> HeatView | None:
    try:
        return await link.client.next_start(target.order(new_replica_id(target.app, target.server)))
    except GlowplugError:
        return None
