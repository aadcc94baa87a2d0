"""Which GPUs take the place of those that a replica was captured on."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.snapshot.gpu.inventory import Device, Inventory
from glowplug.snapshot.gpu.placement import check_room, place
from glowplug.snapshot.manifest import CapturedGpu
from glowplug.types.errors import GpuFailed, ResourceExhausted

CHIPS = ("NVIDIA H100", "NVIDIA L4")


def name(number: int) -> str:
    return f"GPU-{uuid.UUID(int=number)}"


def captured(
    number: int, chip: str = CHIPS[0], *, is_given: bool = False, held_bytes: int = 0
) -> CapturedGpu:
    return CapturedGpu(
        uuid=name(number), chip=chip, memory_bytes=80 << 30, is_given=is_given, held_bytes=held_bytes
    )


def device(number: int, chip: str = CHIPS[0], free_bytes: int = 80 << 30) -> Device:
    return Device(
        index=number,
        uuid=name(number),
        chip=chip,
        memory_bytes=80 << 30,
        free_bytes=free_bytes,
        is_persistent=True,
        is_mig=False,
    )


def here(*devices: Device, driver: str = "580.82.07") -> Inventory:
    return Inventory(driver=driver, cuda="13.0", devices=list(devices))


def test_on_its_own_gpu_a_replica_needs_no_map_and_no_newer_driver() -> None:
    gpus = [captured(0, is_given=True), captured(1)]
    assert place(gpus, here(device(0), device(1), driver="570.1"), [name(0)]) == {}


def test_a_map_names_every_gpu_that_was_there() -> None:
    gpus = [captured(0, is_given=True), captured(1)]
    assert place(gpus, here(device(0), device(1)), [name(1)]) == {name(0): name(1), name(1): name(0)}
    assert place(gpus, here(device(7), device(8), device(9)), [name(9)]) == {
        name(0): name(9),
        name(1): name(7),
    }


@pytest.mark.parametrize(
    ("machine", "given_numbers", "said"),
    [
        (here(device(1), device(2), driver="570.86.10"), [1], "580 or newer"),
        (here(device(1, CHIPS[1]), device(2)), [1], "the place of a NVIDIA H100"),
        (here(device(1)), [1], "the place of a NVIDIA H100"),
        (here(device(1), device(2)), [1, 2], "had 1 GPU.s. when it was captured, and has 2"),
        (here(), [1], "and has 0 now"),
    ],
)
def test_other_gpus_are_refused_with_the_reason(
    machine: Inventory, given_numbers: list[int], said: str
) -> None:
    with pytest.raises(GpuFailed, match=said):
        place([captured(8, is_given=True), captured(9)], machine, [name(number) for number in given_numbers])


def test_memory_is_wanted_of_the_gpu_that_takes_the_place() -> None:
    gpus = [captured(0, is_given=True, held_bytes=3 << 20), captured(1)]
    machine = here(device(0, free_bytes=0), device(1, free_bytes=3 << 20))
    check_room(gpus, machine, place(gpus, machine, [name(1)]))
    with pytest.raises(ResourceExhausted, match=r"GPU 0 has 0\.0 MiB .* needs 3\.0 MiB"):
        check_room(gpus, machine, place(gpus, machine, [name(0)]))


@given(data=st.data())
def test_a_map_is_complete_and_one_to_one_and_keeps_chips(data: st.DataObject) -> None:
    chips = data.draw(st.lists(st.sampled_from(CHIPS), min_size=1, max_size=6))
    was = [captured(number, chip) for number, chip in enumerate(chips)]
    own = data.draw(st.sets(st.sampled_from(range(len(was))), min_size=1))
    was = [gpu.model_copy(update={"is_given": number in own}) for number, gpu in enumerate(was)]
    numbers = data.draw(st.permutations(range(len(was) + 3)))
    devices = [device(number, gpu.chip) for number, gpu in zip(numbers, was, strict=False)]
    given_now = [device.uuid for number, device in enumerate(devices) if number in own]
    placed = place(was, here(*devices), given_now) or {gpu.uuid: gpu.uuid for gpu in was}
    assert placed.keys() == {gpu.uuid for gpu in was}
    assert len(set(placed.values())) == len(placed)
    chip_of = {device.uuid: device.chip for device in devices}
    assert all(chip_of[placed[gpu.uuid]] == gpu.chip for gpu in was)
    assert {placed[gpu.uuid] for gpu in was if gpu.is_given} == set(given_now)
