"""Starts begun lately: what they share and take on their nodes before these tell of it.

A node is asked every few seconds what is taken there. Of a burst hundreds of starts are placed in between,
and each of them must know of those before it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from glowplug.control.replica_entry import Replica


@dataclass
class NodeLoad:
    """Of one node. ``starts`` are under way there; memory and GPUs will be taken, and are not told of yet."""

    starts: int = 0
    memory_bytes: int = 0
    gpus: int = 0


class UnderWay:
    """Knows replicas from their beginning until they are over, or ready and told of by their node.

    ``replicas`` are all that there are now, by id.
    """

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas
        self._recent: set[Replica] = set()

    def begins(self, replica: Replica) -> None:
        """It is on its way to ready from now on."""
        self._recent.add(replica)

    def by_node(self, looked_at_s: Mapping[str, float]) -> Mapping[str, NodeLoad]:
        """What each node has; nothing for one that is not named. ``looked_at_s``: when nodes were asked last
        what is taken there, by the clock of :attr:`Replica.accepted_at_s`.
        """
        loads: defaultdict[str, NodeLoad] = defaultdict(NodeLoad)
        over: list[Replica] = []
        for replica in self._recent:
            accepted_at_s = replica.accepted_at_s
            is_told = accepted_at_s is not None and accepted_at_s < looked_at_s.get(replica.node, -math.inf)
            is_starting = replica.is_starting
            if self._replicas.get(replica.id) is not replica or (is_told and not is_starting):
                over.append(replica)
                continue
            load = loads[replica.node]
            load.starts += is_starting
            if not is_told and replica.resources is not None:
                load.memory_bytes += replica.resources.memory_bytes
                load.gpus += replica.resources.gpu_count
        self._recent.difference_update(over)
        return loads
