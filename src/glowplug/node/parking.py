"""Parked replicas: frozen where they stand, so that the next request needs neither a start nor a restore.

Parked, a replica runs on no processor; its sockets, connections and memory are kept, and its memory may be
moved to swap. Nothing is ever sent to a frozen replica: it is woken first, and has answered its ready call
before anybody hears that it is ready again. One that does not is killed, and a start takes its place. What
is done about GPUs is in :mod:`glowplug.node.gpu_parking`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from glowplug.node import failures
from glowplug.node.capacity import Capacity
from glowplug.node.capture import Captures
from glowplug.node.gpu_parking import GpuParking
from glowplug.node.memory_pressure import read_memory
from glowplug.node.record import AwayDevices
from glowplug.node.replica import Replica
from glowplug.node.starter import Starter
from glowplug.node.table import ReplicaTable
from glowplug.node.talk import ReplicaTalk
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, GlowplugError, ReplicaFailed
from glowplug.types.replica import ReplicaState, ReplicaView, Stage, StartPath

# A page comes back from swap in 0.1 ms, from a disk that is busy in 10: this is for gigabytes of them.
WAKE_TIMEOUT_S = 10.0
# A GPU is mostly given up because somebody waits for it, who comes before captures.
_GPU_QUIET_S = 5.0

logger = logging.getLogger(__name__)


class Parking:
    """Parks and wakes ``replicas`` (the agent's, by id). Lives on the agent's event loop.

    ``spawn`` runs work in the background and owns it.
    """

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        table: ReplicaTable,
        starter: Starter,
        capacity: Capacity,
        devices: GpuParking,
        clock: Clock,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        captures: Captures,
    ) -> None:
        self._replicas = replicas
        self._table = table
        self._starter = starter
        self._capacity = capacity
        self._devices = devices
        self._clock = clock
        self._spawn = spawn
        self._captures = captures

    async def park(self, replica_id: str, *, push_out: bool) -> ReplicaView:
        """Freeze a ready replica; with ``push_out``, its memory moves to swap after that, in the background.

        Asked for a parked one, only the latter. Raises NotFound, Conflict (it is not ready, or somebody works
        in it) or RuntimeFailed (it cannot be frozen; it runs on); and what :meth:`GpuParking.put_away` does.
        """
        replica = self._find(replica_id)
        async with replica.heat:
            if replica.view.state is ReplicaState.READY:
                await self._freeze(replica)
            if replica.view.state is not ReplicaState.PARKED:
                raise _conflict(replica.view, "be parked")
        if push_out and not replica.view.is_pushed_out:
            self._spawn(self._push_out(replica))
        return replica.view

    async def unpark(self, replica_id: str) -> ReplicaView:
        """Let a parked replica run on, and see that it answers. Waking one that is ready is fine.

        Raises NotFound, Conflict, Unavailable or ResourceExhausted (no room for what it may use: it stays
        parked), ReplicaFailed, DeadlineExceeded or GpuFailed (it does not answer: it is killed).
        """
        replica = self._find(replica_id)
        async with replica.heat:
            if replica.view.state is ReplicaState.READY:
                return replica.view
            if replica.view.state is not ReplicaState.PARKED:
                raise _conflict(replica.view, "be woken")
            away = replica.file.away
            await self._reserve(replica, away)
            try:
                await self._thaw(replica, away)
            except Exception as error:  # whatever it is, it may not stay half awake
                logger.warning("%s is killed, as it did not wake: %s", replica.id, failures.in_words(error))
                await self._starter.in_thread(replica.container.kill)
                raise
            if replica.view.state is not ReplicaState.PARKED:  # it was stopped meanwhile
                raise _conflict(replica.view, "be woken")
            self._note_awake(replica)
            return replica.view

    def adopt(self, replica: Replica) -> None:
        """A predecessor's replica was found frozen: whatever was written down, it is parked."""
        replica.change(
            state=ReplicaState.PARKED, parked_at=replica.view.parked_at or self._clock.wall(), stage=None
        )
        self._note_memory(replica)

    async def _reserve(self, replica: Replica, away: AwayDevices | None) -> None:
        """What it may use, and room for what is to come back. It stays parked if there is none."""
        wanted = replica.request.server.resources
        if away is None:
            self._capacity.reserve(replica.id, wanted)
            return
        with self._captures.giving_way():
            self._capacity.reserve(replica.id, wanted, away.given, can_move=self._devices.can_move)
        try:
            await self._starter.in_thread(self._devices.check_room, replica, away)
        except GlowplugError:
            self._note_memory(replica)
            raise

    async def release_killed(self) -> None:
        """Let those die that were killed while they were frozen; whoever watches them does the rest."""
        for replica in list(self._replicas.values()):
            if replica.view.state is not ReplicaState.PARKED:
                continue
            if await self._starter.in_thread(replica.container.cgroup.has_kill_pending):
                logger.warning("%s was killed while parked", replica.id)
                await self._starter.in_thread(replica.container.kill)

    def _find(self, replica_id: str) -> Replica:
        view = self._table.get(replica_id)
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise _conflict(view, "be parked or woken")
        return replica

    async def _freeze(self, replica: Replica) -> None:
        if any(replica.container.folder.execs.iterdir()):
            raise Conflict(
                f"Somebody works in {replica.id}: it is not parked.",
                remedy="End `glowplug exec` or `glowplug shell` in it.",
                replica_id=replica.id,
            )
        if replica.may_leave_devices:
            await self._devices.put_away(replica)
        is_away = replica.file.away is not None
        try:
            await self._starter.in_thread(replica.container.cgroup.freeze)
        except GlowplugError:
            if is_away:  # and so of no use to anybody
                await self._starter.in_thread(replica.container.kill)
            raise
        if replica.view.state is not ReplicaState.READY:  # it was stopped meanwhile, and must be able to end
            await self._starter.in_thread(
                replica.container.kill if is_away else replica.container.cgroup.thaw
            )
            return
        replica.change(state=ReplicaState.PARKED, parked_at=self._clock.wall(), is_pushed_out=False)
        self._note_memory(replica)
        logger.info("%s is parked", replica.id)
        self._spawn(self._offer_room(_GPU_QUIET_S if is_away else 0.0))

    async def _offer_room(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._captures.room_was_made()

    async def _push_out(self, replica: Replica) -> None:
        cgroup = replica.container.cgroup
        if read_memory().swap_free_bytes == 0:
            logger.info("%s stays in memory: there is no swap", replica.id)
            return
        try:
            await self._starter.in_thread(cgroup.push_out)
        except GlowplugError as error:
            logger.warning("%s stays in memory: %s", replica.id, error.message)
            return
        if replica.view.state is ReplicaState.PARKED:
            replica.change(is_pushed_out=cgroup.swapped_bytes() > (cgroup.memory_bytes() or 0))
            self._note_memory(replica)
            await self._captures.room_was_made()

    async def _thaw(self, replica: Replica, away: AwayDevices | None) -> None:
        replica.change(stages_s={})
        if away is not None:
            replica.note_moving()
        with replica.stage(Stage.HOST_INIT):
            await self._starter.in_thread(replica.container.cgroup.thaw)
        if away is not None:
            with replica.stage(Stage.DEVICE_INIT):
                await self._devices.bring_back(replica, away)
        with replica.stage(Stage.FIRST_ANSWER):
            await self._starter.while_alive(replica, _ask(replica))

    def _note_awake(self, replica: Replica) -> None:
        # What it had read to come to life the first time is not what it took this time.
        replica.change(
            state=ReplicaState.READY,
            path=StartPath.PARKED,
            stage=None,
            ready_at=self._clock.wall(),
            parked_at=None,
            is_pushed_out=False,
            restored_bytes=0,
            snapshot_bytes_by_tier={},
            snapshot_chunks_by_tier={},
            image_bytes_by_tier={},
            image_chunks_by_tier={},
            fallback_reason=None,
        )
        logger.info("%s is awake", replica.id)

    def _note_memory(self, replica: Replica) -> None:
        memory_bytes = replica.container.cgroup.memory_bytes() or 0
        self._capacity.park(replica.id, memory_bytes, keeps_gpus=replica.file.away is None)


async def _ask(replica: Replica) -> None:
    """Raises ReplicaFailed or DeadlineExceeded unless it says that it is ready."""
    talk = ReplicaTalk(replica.container.endpoint)
    try:
        answer = await talk.call("ready", replica.request.server.ready, WAKE_TIMEOUT_S)
    finally:
        await talk.close()
    if not answer.is_success:
        raise ReplicaFailed(
            f"{replica.id} was woken and says {answer.status} to its ready call.",
            remedy=f"See its log: glowplug logs {replica.id}.",
            replica_id=replica.id,
        )


def _conflict(view: ReplicaView, what: str) -> Conflict:
    return Conflict(
        f"{view.id} is {view.state.value} ({view.purpose.value}) and cannot {what}.",
        remedy="`glowplug ps` lists what is ready or parked.",
        replica_id=view.id,
    )
