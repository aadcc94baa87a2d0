"""This process's part in a world of ranks: its gate, groups and member, and on rank 0 the coordinator."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

from glowplug import hooks
from glowplug.nccl import support
from glowplug.nccl.coordinator import Coordinator, Counts, Peer
from glowplug.nccl.gate import Gate
from glowplug.nccl.groups import TorchGroups
from glowplug.nccl.handle import Handle
from glowplug.nccl.member import Member
from glowplug.nccl.words import Deadlines
from glowplug.types.errors import Conflict, GlowplugError

_KEY = "glowplug/nccl"


class Plugin:
    """One per process. What it promises is said by the functions of the package."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.groups = TorchGroups(self.gate, self._join)
        self._deadlines: Deadlines | None = None
        self._member: Member | None = None
        self._coordinator: Coordinator | None = None
        self._has_hooks = False

    def enable(self, deadlines: Deadlines) -> None:
        """Once; raises as ``TorchGroups.install``."""
        if self._deadlines is None:
            self.groups.install()
            self._deadlines = deadlines

    def coordinated(self) -> Coordinator:
        """Rank 0's. Raises Conflict elsewhere."""
        if self._coordinator is None:
            raise Conflict(
                "This process is not rank 0 of a world that glowplug.nccl knows.",
                remedy="Call enable() in every rank before init_process_group(), and this on rank 0.",
            )
        return self._coordinator

    def joined(self) -> tuple[Member, Counts | None]:
        """This rank, and how often things happened, if it is rank 0. Raises Conflict without a world."""
        if self._member is None:
            raise Conflict("There is no world yet.", remedy="Call init_process_group() after enable().")
        return self._member, self._coordinator.counts if self._coordinator is not None else None

    def _join(self, world: Handle, store: Any) -> None:
        """The world was made: ranks tell each other where they listen, through the store that made it."""
        if self._member is not None:
            self._member.close()
        deadlines = self._deadlines or Deadlines()
        is_first = world.rank() == 0
        unresumed = self._take_back if is_first else None
        member = Member(world.rank(), self.groups, self.gate, deadlines, unresumed)
        store.set(f"{_KEY}/{world.rank()}", f"{member.port} {support.place()}")
        if is_first:
            store.set(f"{_KEY}/token", secrets.token_hex(16))
        member.token = store.get(f"{_KEY}/token").decode()
        self._member, self._coordinator = member, None
        if is_first:
            peers = [_peer(rank, store.get(f"{_KEY}/{rank}")) for rank in range(world.size())]
            self._coordinator = Coordinator(peers, member.token, deadlines, self.groups.open_rendezvous)
            self._register()

    def _take_back(self) -> None:
        """Nobody resumed for a long time. The coordinator logs what fails, and tells every rank."""
        with contextlib.suppress(GlowplugError):
            self.coordinated().resume()

    def _register(self) -> None:
        """Once, and on rank 0 only: the node asks one process after the other, and ranks act together."""
        if self._has_hooks:
            return
        self._has_hooks = True
        hooks.before_snapshot(lambda: self.coordinated().prepare())
        hooks.after_restore(lambda: self.coordinated().resume())


def _peer(rank: int, said: bytes) -> Peer:
    port, _, place = said.decode().partition(" ")
    return Peer(rank, int(port), place)


plugin = Plugin()
