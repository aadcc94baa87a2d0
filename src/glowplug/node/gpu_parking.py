"""Parked replicas hold no device memory, so that many models share a GPU by turns.

::

    park   quiesce (hooks) -> lock all -> checkpoint all -> freeze
    wake   room? -> thaw -> restore all -> unlock all (hooks) -> ready call

A GPU has one replica that is awake at a time: what that one takes can grow, and nothing is promised twice.
Before one is woken, its GPUs must have as much memory free as was measured when it was parked. The hooks of a
snapshot are run around parking too: those of engines drop what is cheap to make again.

Whatever fails ends in one of two ways: all processes run, with their memory, and nothing has happened; or the
replica is killed, and whoever needs it gets a start. It is written down before anything is moved: an agent
that finds a replica whose memory was on its way when its predecessor died kills it, as nobody waits for one
that was being parked, and whoever waited for one that was being woken is served by a start.
"""

from __future__ import annotations

import logging

from glowplug.node.capacity import Capacity
from glowplug.node.gpu_snapshots import GpuSnapshots
from glowplug.node.hooks import Moment, find_hook_ports, restore_timeout_s, run_hook, run_registered
from glowplug.node.record import AwayDevices
from glowplug.node.replica import Replica
from glowplug.node.starter import Starter
from glowplug.node.talk import ReplicaTalk
from glowplug.snapshot.gpu.protocol import Left
from glowplug.types.errors import GlowplugError, NotFound

logger = logging.getLogger(__name__)


class GpuParking:
    """Moves the device memory of replicas that are parked and woken. Lives on the agent's event loop."""

    def __init__(self, devices: GpuSnapshots, starter: Starter, capacity: Capacity) -> None:
        self._devices = devices
        self._starter = starter
        self._capacity = capacity

    @property
    def can_move(self) -> bool:
        """Whether the driver brings device memory back to other GPUs than those that it was on."""
        return self._devices.can_move

    async def put_away(self, replica: Replica) -> None:
        """Before a replica is frozen: its device memory goes to the host, and its GPUs are free.

        Raises what failed: it runs on as before if ``details["left"]`` is ``running``, else it is killed.
        """
        replica.note_moving()
        try:
            ports = await self._starter.while_alive(replica, _tell_to_sleep(replica))
        except Exception:
            await self._kill(replica)
            raise
        try:
            gpus = await self._devices.suspend(replica, is_kept=True)
        except Exception as error:  # whatever it is, it may not stay half suspended
            if _left_running(error):
                await self._stay(replica, ports)
            else:
                await self._kill(replica)
            raise
        replica.note_devices([], AwayDevices(gpus=gpus, hook_ports=ports))

    def check_room(self, replica: Replica, away: AwayDevices) -> None:
        """Before a parked replica is thawed. Raises ResourceExhausted, GpuFailed, Unavailable. Blocks."""
        self._devices.check_fit(replica.id, away.gpus, max_age_s=0.0, what=f"memory of {replica.id}")

    async def bring_back(self, replica: Replica, away: AwayDevices) -> None:
        """After it was thawed. Raises what failed: it must be killed then."""
        await self._devices.resume(replica, away.gpus)
        await self._starter.while_alive(replica, _tell_to_wake(replica, away.hook_ports))
        replica.note_devices(self._capacity.gpus_of(replica.id), None)

    async def _stay(self, replica: Replica, ports: list[int]) -> None:
        """It runs, and was told to sleep."""
        try:
            await self._starter.while_alive(replica, _tell_to_wake(replica, ports))
        except GlowplugError as error:
            logger.warning("%s is killed, as it does not wake up: %s", replica.id, error.message)
            await self._kill(replica)
            return
        replica.note_devices(replica.view.gpus, None)

    async def _kill(self, replica: Replica) -> None:
        await self._starter.in_thread(replica.container.kill)


def _left_running(error: Exception) -> bool:
    """Whether its processes run as before; one that has not used its GPU was not touched."""
    if isinstance(error, NotFound):
        error.details["left"] = Left.RUNNING.value
    return isinstance(error, GlowplugError) and error.details.get("left") == Left.RUNNING


async def _tell_to_sleep(replica: Replica) -> list[int]:
    """The hooks of a snapshot; the ports of the registered ones. Raises ReplicaFailed, DeadlineExceeded."""
    hook, container = replica.request.server.snapshot.before_snapshot, replica.container
    ports = await find_hook_ports(container.endpoint)
    if hook is not None:
        talk = ReplicaTalk(container.endpoint)
        try:
            await run_hook(hook, container, talk)
        finally:
            await talk.close()
    await _run_registered(replica, ports, "before_snapshot")
    return ports


async def _tell_to_wake(replica: Replica, ports: list[int]) -> None:
    """Those of a restored copy. Raises ReplicaFailed, DeadlineExceeded."""
    hook, container = replica.request.server.snapshot.after_restore, replica.container
    await _run_registered(replica, ports, "after_restore")
    if hook is not None:
        talk = ReplicaTalk(container.endpoint)
        try:
            await run_hook(hook, container, talk)
        finally:
            await talk.close()


async def _run_registered(replica: Replica, ports: list[int], moment: Moment) -> None:
    limit_s = restore_timeout_s(replica.request.server)
    await run_registered(replica.id, replica.container.endpoint, ports, moment, limit_s)
