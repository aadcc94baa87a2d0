"""Which rung of the heat ladder each server stands on, for people who look.

Of what runs or is parked the control plane knows; of a server at zero, each node says what a start would find
there. Nothing is decided by it: a start looks for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from glowplug.control.node_link import NodeLink
from glowplug.control.target import Target
from glowplug.types.errors import GlowplugError
from glowplug.types.ids import new_replica_id
from glowplug.types.replica import Heat, HeatView

_LADDER = list(Heat)


async def server_heat(target: Target, links: Sequence[NodeLink]) -> HeatView | None:
    """The hottest there is; None if no node can be asked."""
    if target.live():
        return HeatView(heat=Heat.RUNNING)
    if target.parked():
        return HeatView(heat=Heat.PARKED)
    found = await asyncio.gather(
        *(_on_node(target, link) for link in links if link.is_synced and not link.is_silent)
    )
    views = [view for view in found if view is not None]
    return min(views, key=lambda view: _LADDER.index(view.heat), default=None)


async def _on_node(target: Target, link: NodeLink) -> HeatView | None:
    try:
        return await link.client.next_start(target.order(new_replica_id(target.app, target.server)))
    except GlowplugError:
        return None
