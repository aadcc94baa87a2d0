"""Looks at the nodes as they are now, has them ranked, and remembers for a while why replicas are where they
are.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from glowplug.control.fleet import Fleet
from glowplug.control.image_care import ImageCare
from glowplug.control.messages import NodeScore, PlacementView
from glowplug.control.node_link import NodeLink
from glowplug.control.placement import Candidate, Score, Wish, rank
from glowplug.control.replica_entry import Replica
from glowplug.control.target import Target
from glowplug.control.under_way import NodeLoad
from glowplug.types.clock import Clock
from glowplug.types.cluster import NodeState
from glowplug.types.errors import NotFound
from glowplug.types.replica import HOLDINGS_FRESH_S

_REMEMBERED = 2000
_REMEMBERED_SCORES = 50_000
"""About 40 MB: with more than 25 nodes fewer replicas are remembered, never fewer than one."""
_NO_LOAD = NodeLoad()


@dataclass(frozen=True)
class _Placed:
    """Why a replica is where it is. ``refusals``: by node, what its agent said when it was asked."""

    node: str
    at: float
    scores: Sequence[Score]
    refusals: Mapping[str, str] = field(default_factory=dict)


class Placer:
    """Where replicas go. Knows nothing that the links and the fleet do not."""

    def __init__(self, fleet: Fleet, links: Sequence[NodeLink], images: ImageCare, clock: Clock) -> None:
        self._fleet = fleet
        self._links = links
        self._images = images
        self._clock = clock
        self._remembered: OrderedDict[str, _Placed] = OrderedDict()
        self._scores = 0

    def rank(self, target: Target) -> list[Score]:
        """All nodes for one more replica of this server, best first."""
        resources = target.version.spec.resources
        wish = Wish(
            app=target.app,
            server=target.server,
            image_id=target.version.image_id,
            memory_bytes=resources.memory_bytes,
            gpu=resources.gpu_chip,
            gpu_count=resources.gpu_count,
        )
        loads = self._fleet.under_way.by_node({link.name: link.looked_at_s for link in self._links})
        copies = self._copies(target)
        return rank(wish, [self._candidate(link, target, loads, copies) for link in self._links])

    def link(self, name: str) -> NodeLink | None:
        """The node of this name, while it is one."""
        return next((link for link in self._links if link.name == name), None)

    def remember(self, replica_id: str, scores: Sequence[Score]) -> None:
        """This is why the replica is asked for where it is."""
        self._remembered[replica_id] = _Placed(scores[0].node, self._clock.wall(), scores)
        self._scores += len(scores)
        while len(self._remembered) > 1 and (
            len(self._remembered) > _REMEMBERED or self._scores > _REMEMBERED_SCORES
        ):
            _, forgotten = self._remembered.popitem(last=False)
            self._scores -= len(forgotten.scores)

    def moved(self, replica_id: str, node: str, refusals: dict[str, str]) -> None:
        """It is asked for on ``node`` now, as others have refused it."""
        placed = self._remembered.get(replica_id)
        if placed is not None:
            self._remembered[replica_id] = replace(placed, node=node, refusals=refusals)

    def of(self, replica_id: str) -> PlacementView:
        """Raises NotFound, also for what was placed before the control plane was started."""
        placed = self._remembered.get(replica_id)
        if placed is None:
            raise NotFound(
                f"Why replica {replica_id!r} is where it is is not known.",
                remedy="It is for the last ones that this control plane has placed since its start.",
                replica_id=replica_id,
            )
        return PlacementView(
            replica_id=replica_id,
            node=placed.node,
            placed_at=placed.at,
            scores=[_told(score, placed.refusals.get(score.node)) for score in placed.scores],
        )

    def _copies(self, target: Target) -> dict[str, list[Replica]]:
        copies: defaultdict[str, list[Replica]] = defaultdict(list)
        for replica in target.replicas.values():
            if replica.drain is None:
                copies[replica.node].append(replica)
        return copies

    def _candidate(
        self,
        link: NodeLink,
        target: Target,
        loads: Mapping[str, NodeLoad],
        copies: Mapping[str, Sequence[Replica]],
    ) -> Candidate:
        why_not = self._images.why_not(link.name, target.version.image_id)
        if link.state is not NodeState.READY:
            why_not = f"{link.state.value}: {link.why}"
        view = link.view
        load = loads.get(link.name, _NO_LOAD)
        here = copies.get(link.name, ())
        free_bytes = view.memory_bytes - view.memory_used_bytes - load.memory_bytes if view else None
        return Candidate(
            name=link.name,
            why_not=why_not,
            labels=link.labels,
            cpus=view.cpus if view else 0.0,
            memory_bytes=view.memory_bytes if view else 0,
            free_memory_bytes=free_bytes,
            gpus=view.gpus if view else (),
            gpus_used=view.gpus_used + load.gpus if view else 0,
            holdings=link.holdings,
            has_image=self._images.is_there(link, target.version.image_id),
            copies=len(here),
            starting=load.starts,
            is_fetching=any(target.is_current(r) and _is_fetching(r, link.looked_at_s) for r in here),
        )


def _is_fetching(replica: Replica, looked_at_s: float) -> bool:
    """What its start needs is on its way, or came too lately for its node to have told of it."""
    ready_at_s = replica.ready_at_s
    return replica.is_starting or (ready_at_s is not None and ready_at_s > looked_at_s - HOLDINGS_FRESH_S)


def _told(score: Score, refusal: str | None) -> NodeScore:
    return NodeScore(
        node=score.node,
        total=round(score.total, 2),
        parts=dict(score.parts),
        why_not=score.why_not or score.why_full,
        refusal=refusal,
    )
