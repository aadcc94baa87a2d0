"""The GPUs of this node: which of them replicas are given, what is free of them, and how they come inside.

Read again and again, for a GPU may fail at any time: by the resident helper of the node's GPU guard, which
has NVML loaded. One that does not answer, needs a reset after an Xid error, or that is cut into MIG slices is
not given to replicas: it is logged, and ``glowplug_gpus_refused`` counts it, as it counts one for a driver
that cannot be asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from glowplug.runtime.cdi import cdi_folders, describes_gpus, read_gpu_edits
from glowplug.runtime.port import ContainerEdits
from glowplug.snapshot.gpu.inventory import DRIVER, STAGE, Device, Inventory, read_inventory
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError, SystemUnfit, Unavailable

FRESH_S = 2.0
"""A reading wakes GPUs, and takes some time; one as young as this answers for the next question."""
_NONE = Inventory(driver="none", cuda="none", devices=[])
_LOG = logging.getLogger(__name__)


class Gpus:
    """What NVIDIA's driver says of them. Every method may be called in any thread; reading blocks."""

    def __init__(self, registry: CollectorRegistry, clock: Clock, driver: Path = DRIVER) -> None:
        self._refused = Gauge("glowplug_gpus_refused", "GPUs that this node does not use.", registry=registry)
        self._processes = Counter(
            "glowplug_gpu_inventory_processes",
            "Processes that were started to list the GPUs: the first, and where the resident helper did not.",
            registry=registry,
        )
        self.resident: Callable[[], Inventory | None] | None = None
        """Lists them without a new process, once there is an agent. Blocks; not for its event loop."""
        self._clock = clock
        self._folders = cdi_folders()
        self._is_present = driver.exists() or describes_gpus(self._folders)
        self._reading = threading.Lock()
        self._read_at_s: float | None = None
        self._edits: ContainerEdits | None = None
        self._problem = ""
        self.inventory = _NONE
        """As last read; without a single device where there is none, or the driver could not be asked."""
        self.refresh()

    @property
    def fit(self) -> list[Device]:
        """Those that replicas may be given."""
        return [device for device in self.inventory.devices if device.is_fit]

    @property
    def usable(self) -> Inventory:
        """The driver, and those GPUs."""
        return self.inventory.model_copy(update={"devices": self.fit})

    def refresh(self, max_age_s: float = 0.0) -> Inventory:
        """Ask again, unless the last answer is younger."""
        with self._reading:
            now_s = self._clock.monotonic()
            if self._is_present and (self._read_at_s is None or now_s - self._read_at_s >= max_age_s):
                self._take(self._read())
                self._read_at_s = self._clock.monotonic()
            return self.inventory

    def why_unfit(self, uuids: Collection[str]) -> str:
        """What speaks against one of these, in words; "" if nothing does."""
        known = {device.uuid: device for device in self.inventory.devices}
        for uuid in uuids:
            device = known.get(uuid)
            if device is None:
                return f"{uuid} is not there any more"
            if not device.is_fit:
                return f"GPU {device.index} ({device.chip}): {device.state}"
        return ""

    def held_bytes(self, pids: Collection[int]) -> int:
        """Device memory that these processes held when it was last read."""
        own = set(pids)
        return sum(
            held for device in self.inventory.devices for pid, held in device.processes.items() if pid in own
        )

    def edits(self, runtime: str, uuids: Sequence[str]) -> ContainerEdits | None:
        """What a container is given to use these; None for none.

        It sees the others too, as the driver counts them when it brings memory back, but is told to use its
        own. Raises SystemUnfit where that cannot be.
        """
        if not uuids:
            return None
        if runtime != "runc":
            raise SystemUnfit(
                f"A container of {runtime} is given no GPU.",
                remedy='Write runtime="runc" or trusted=True, and have runc on the node (docs/gpu.md).',
            )
        edits = self._edits = self._edits or read_gpu_edits(self._folders)
        return replace(edits, env={**edits.env, "CUDA_VISIBLE_DEVICES": ",".join(uuids)})

    def _read(self) -> Inventory | GlowplugError:
        # Where the last answer had no GPU, the helper may be what is wrong.
        if self.resident is not None and self.inventory.devices:
            try:
                return self.resident() or _NONE
            except (Unavailable, Conflict, DeadlineExceeded) as error:
                if error.details.get("stage") == STAGE:  # NVML hangs, in every process
                    return error
                _LOG.warning("the GPUs are listed by a process of its own: %s", error.message)
            except GlowplugError as error:
                return error
        self._processes.inc()
        try:
            return read_inventory() or _NONE
        except GlowplugError as error:
            return error

    def _take(self, found: Inventory | GlowplugError) -> None:
        before = {device.index: device.state for device in self.inventory.devices}
        if isinstance(found, GlowplugError):
            if self._problem != found.message:
                _LOG.warning("this node gives no GPU to replicas: %s", found)
            self.inventory, self._problem = _NONE, found.message
            self._refused.set(1)
            return
        self.inventory, self._problem = found, ""
        self._refused.set(sum(not device.is_fit for device in found.devices))
        for device in found.devices:
            if not device.is_fit and before.get(device.index) != device.state:
                _LOG.warning("GPU %d (%s) is not used: %s", device.index, device.chip, device.state)
