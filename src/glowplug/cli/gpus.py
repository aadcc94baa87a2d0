"""``gpu ls|check``: this machine's GPUs, what their driver can do, and whether it does it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from glowplug.cli.options import JsonOption, session_of
from glowplug.cli.output import print_json, print_table
from glowplug.cli.session import Session
from glowplug.observe.waterfall import format_bytes
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.features import can, features_of
from glowplug.snapshot.gpu.inventory import Device, Inventory, read_inventory
from glowplug.snapshot.gpu.trial import Trial, try_device
from glowplug.types.errors import NotFound, SystemUnfit

commands = typer.Typer(help="GPUs of this machine: list them, try their snapshots.", no_args_is_help=True)


@commands.command()
def ls(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the GPUs, and what their driver can do about snapshots."""
    session = session_of(context)
    inventory = read_inventory()
    if as_json:
        print_json(session, inventory and _inventory_to_json(inventory))
        return
    rows = [_row(device) for device in inventory.devices] if inventory else []
    print_table(session, ["GPU", "CHIP", "MEMORY", "FREE", "STATE", "UUID"], rows, "No GPU: CPU only.")
    if inventory:
        words = [feature.words for feature in features_of(inventory.driver)] or ["do nothing about snapshots"]
        said = "\n  ".join([f"Driver {inventory.driver} (CUDA {inventory.cuda}) can", *words])
        session.out.print(said, markup=False, highlight=False)


@commands.command()
def check(
    context: typer.Context,
    device: Annotated[int | None, typer.Option(help="Its number in `gpu ls` (default: each).")] = None,
    size: Annotated[
        int, typer.Option("--bytes", min=1, help="How much device memory to move (default: 256 MiB).")
    ] = 256 << 20,
    as_json: JsonOption = False,
) -> None:
    """Suspend and resume a small CUDA process on the GPU; its memory must survive. Exit code 1 if not."""
    session = session_of(context)
    trials, counts = asyncio.run(_try(session, _chosen(read_inventory(), device), size))
    if as_json:
        print_json(session, {"trials": [trial.model_dump() for trial in trials], "counts": counts})
        return
    columns = ["GPU", "CHIP", "MOVED", "LOCK", "TO THE HOST", "BACK", "UNLOCK", "RATE"]
    print_table(session, columns, [_trial_row(trial) for trial in trials], "")


async def _try(session: Session, devices: list[Device], size: int) -> tuple[list[Trial], dict[str, int]]:
    async with GpuGuard(session.state.gpu_check) as guard:
        trials = [await try_device(guard, device, size) for device in devices]
        return trials, await guard.counts()


def _chosen(inventory: Inventory | None, index: int | None) -> list[Device]:
    if inventory is None or not inventory.devices:
        raise NotFound("This machine has no GPU.", remedy="Nothing to do: servers run on the processor.")
    if not can(inventory.driver, "checkpoint"):
        raise SystemUnfit(
            f"Driver {inventory.driver} cannot suspend a process.",
            remedy="Install 570 or newer: docs/gpu.md.",
        )
    chosen = [device for device in inventory.devices if index in (None, device.index)]
    if not chosen:
        raise NotFound(f"There is no GPU {index}.", remedy="`glowplug gpu ls` lists them.")
    for device in chosen:
        if not device.is_fit:
            raise SystemUnfit(
                f"GPU {device.index} is not fit: {device.state}.", remedy="Name another with --device."
            )
    return chosen


def _row(device: Device) -> list[str]:
    return [
        str(device.index), device.chip, format_bytes(device.memory_bytes), format_bytes(device.free_bytes),
        device.state, device.uuid,
    ]  # fmt: skip


def _trial_row(trial: Trial) -> list[str]:
    seconds = trial.seconds
    slower_s = max(seconds["checkpoint_s"], seconds["restore_s"])
    return [
        str(trial.device.index), trial.device.chip, format_bytes(trial.size_bytes),
        *(f"{seconds[f'{call}_s']:.3f} s" for call in ("lock", "checkpoint", "restore", "unlock")),
        f"{trial.size_bytes / 1e9 / slower_s:.2f} GB/s",
    ]  # fmt: skip


def _inventory_to_json(inventory: Inventory) -> dict[str, Any]:
    return {**inventory.model_dump(), "features": [feature.name for feature in features_of(inventory.driver)]}
