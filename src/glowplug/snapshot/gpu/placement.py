"""Which GPUs take the place of those that a replica was captured on: the complete map that the driver wants.

NVIDIA: "If an array of GPU UUID pairs is specified, it must contain every checkpointed GPU", and the new one
"needs to have enough memory and be of the same chip type". Containers see all GPUs of their node, so the map
names every one that was in the machine: those that the replica had become those that it is given now, and
each of the others becomes some other one of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from glowplug.snapshot.gpu.features import can
from glowplug.snapshot.gpu.inventory import Device, Inventory
from glowplug.snapshot.gpu.words import DeviceMap
from glowplug.snapshot.manifest import CapturedGpu
from glowplug.types.errors import GpuFailed, ResourceExhausted

_MIB = 1 << 20


def place(captured: Sequence[CapturedGpu], here: Inventory, given: Sequence[str]) -> DeviceMap:
    """UUIDs then to UUIDs now, all of them; empty if each is itself. ``given`` are the replica's own now.

    Raises GpuFailed, in words for a cold start's record, when there is no such map or the driver takes none.
    """
    by_uuid = {device.uuid: device for device in here.devices if device.uuid}
    own = [gpu for gpu in captured if gpu.is_given]
    others = [gpu for gpu in captured if not gpu.is_given]
    targets = [by_uuid[uuid] for uuid in given if uuid in by_uuid]
    if len(own) != len(targets):
        raise _refused(f"the replica had {len(own)} GPU(s) when it was captured, and has {len(targets)} now")
    spare = [device for device in by_uuid.values() if device.uuid not in given]
    placed = {**_matched(own, targets), **_matched(others, spare)}
    if all(before == after for before, after in placed.items()):
        return {}
    if not can(here.driver, "device_map"):
        raise _refused(f"driver {here.driver} resumes on the same GPUs only, and 580 or newer on others")
    return placed


def check_room(
    captured: Sequence[CapturedGpu], here: Inventory, placed: DeviceMap, what: str = "snapshot"
) -> None:
    """Raise ResourceExhausted if a GPU has less free memory than what is to come back to it.

    ``what`` it comes from, in a word.
    """
    by_uuid = {device.uuid: device for device in here.devices}
    for gpu in captured:
        device = by_uuid.get(placed.get(gpu.uuid, gpu.uuid))
        if gpu.held_bytes and device is not None and device.free_bytes < gpu.held_bytes:
            raise ResourceExhausted(
                f"GPU {device.index} has {device.free_bytes / _MIB:.1f} MiB of device memory free, and the "
                f"{what} needs {gpu.held_bytes / _MIB:.1f} MiB.",
                remedy="`glowplug gpu ls` shows what is free; something else holds the rest.",
                resource="gpu",
                uuid=device.uuid,
            )


def _matched(captured: Sequence[CapturedGpu], devices: Sequence[Device]) -> DeviceMap:
    """Each to itself where it is among ``devices``, and else to the first of its kind that is left."""
    left = {device.uuid: device for device in devices}
    found = {gpu.uuid: gpu.uuid for gpu in captured if gpu.uuid in left and _is_alike(gpu, left[gpu.uuid])}
    for uuid in found:
        del left[uuid]
    for gpu in captured:
        if gpu.uuid in found:
            continue
        likely = next((uuid for uuid, device in left.items() if _is_alike(gpu, device)), None)
        if likely is None:
            raise _refused(f"no GPU here can take the place of a {gpu.chip} ({gpu.memory_bytes} bytes)")
        found[gpu.uuid] = likely
        del left[likely]
    return found


def _is_alike(gpu: CapturedGpu, device: Device) -> bool:
    return (gpu.chip, gpu.memory_bytes) == (device.chip, device.memory_bytes)


def _refused(why: str) -> GpuFailed:
    return GpuFailed(
        f"The GPUs of this node are not those of the snapshot: {why}.",
        remedy="Restore on a node with the same GPUs; docs/gpu.md says what must be equal.",
        call="restore",
    )
