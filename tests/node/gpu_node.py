"""A real agent on a machine whose GPUs are those of the fake driver, and servers that use them in runc."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.sandboxes import eventually
from tests.snapshot.gpu.machine import H100, Machine

MEMORY_BYTES = 512 << 20
DEVICE_BYTES = 1 << 20
MACHINE_BYTES = 64 << 20
SLOW_S = "2"
"""A cold start that a restore beats: else its snapshots would not be used any more after a while."""


class GpuNode(LiveAgent):
    """With two H100 unless the test changes :attr:`machine`."""

    def __init__(self, root: Path, machine: Machine) -> None:
        self.machine = machine
        super().__init__(root, venv=Path(sys.prefix))
        self.runtime = "runc"

    def device_server(self, case: str, processes: int = 1, **changes: Any) -> dict[str, Any]:
        """Its processes hold :data:`DEVICE_BYTES` each; a snapshot key of its own for each ``case``."""
        changes = {"snapshot": {"gpu": True}} | changes
        return self.server(
            *("python3", "/servers/device_server.py", str(processes)),
            name=f"{case}-{processes}",
            env={"CASE": case, "DEVICE_BYTES": str(DEVICE_BYTES), "SLOW_S": SLOW_S},
            resources={"memory_bytes": MEMORY_BYTES, "gpu": "H100"},
            **changes,
        )

    def snapshot_of(self, server: dict[str, Any]) -> dict[str, Any] | None:
        """The server's snapshot, or the capture that is under way or has failed."""
        found = [one for one in self.snapshots() if (one["app"], one["server"]) == (self.app, server["name"])]
        return found[0] if found else None

    def capture(self, server: dict[str, Any]) -> dict[str, Any]:
        """Have it captured now; what became of that."""
        answer = self.client.post("/v1/snapshots", json=self.request(server))
        assert answer.status_code == 202, answer.text

        def over() -> dict[str, Any] | None:
            found = self.snapshot_of(server)
            return found if found and found["status"] != "capturing" else None

        return dict(eventually(over, f"{server['name']} is captured", 180))

    def good_snapshot(self, server: dict[str, Any]) -> dict[str, Any]:
        """The one that there is, or else one captured now."""
        found = self.snapshot_of(server)
        if found is None or found["status"] != "good":
            found = self.capture(server)
        assert found["status"] == "good", found
        return found

    def await_strike(self) -> None:
        """Until the fault that was asked for has been met."""
        eventually(lambda: not any((self.machine.folder / "faults").iterdir()), "the fault strikes", 120)

    def no_device_memory_is_held(self) -> None:
        """Nothing of the replicas that ended is left on a device."""
        eventually(lambda: self.machine.device_bytes() == 0, "no device memory is held")


@contextmanager
def gpu_node(root: Path, machine: Machine, libraries: Path) -> Iterator[GpuNode]:
    """Such an agent; it must leave nothing of its replicas behind."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH"):
            patch.setenv(name, machine.environment[name])
        patch.setenv("GLOWPLUG_CDI", str(machine.describe_to_containers(libraries)))
        node = GpuNode(root, machine)
        try:
            yield node
        finally:
            node.close()
    assert node.leftovers() == []
    assert node.mounts() == []


def two_h100(folder: Path, libraries: Path) -> Machine:
    """The machine that the tests begin with."""
    return Machine(folder, libraries, (H100, H100), MACHINE_BYTES)
