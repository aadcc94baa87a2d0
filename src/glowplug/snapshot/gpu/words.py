"""The driver's words: the states of a process and the calls that change them."""

from __future__ import annotations

import uuid
from enum import StrEnum

from glowplug.types.errors import InvalidInput


class CudaState(StrEnum):
    """``CUprocessState`` of cuda.h, in its order, so that a number is an index into the members."""

    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"
    CHECKPOINTING = "checkpointing"
    RESTORING = "restoring"


class DriverCall(StrEnum):
    """The calls of ``cuCheckpointProcess*`` that we make."""

    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"
    STATE = "state"


INVENTORY = "inventory"
"""What the helper is asked besides: the GPUs, as NVML tells of them."""

DeviceMap = dict[str, str]
"""UUIDs of the devices as captured, and of those that stand in for them; all of them, or none at all."""


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes of a GPU's UUID, ``GPU-`` and 32 digits with dashes. Raises InvalidInput."""
    try:
        return uuid.UUID(text.removeprefix("GPU-")).bytes
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is not a GPU's UUID.", remedy="`glowplug gpu ls` shows them."
        ) from error
