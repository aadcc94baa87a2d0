"""Machines that can be switched off, cut off one way or both, slowed down, and whose disks can be filled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.bridge import Bridge, BridgedMachine
from tests.e2e.cluster import GATEWAY_PORT, leaving_nothing
from tests.e2e.live import UP_TIMEOUT_S, Live

from glowplug.types.paths import StateDir

REPOSITORY = Path(__file__).parents[3]
DISK_BYTES = 1 << 30
_COMMAND_TIMEOUT_S = 60
_RULES = """add table inet fault
add chain inet fault there {{ type filter hook input priority 0; }}
add chain inet fault back {{ type filter hook output priority 0; }}
add rule inet fault {way} {side} "eth0" drop
"""


class FaultyMachine(BridgedMachine):
    """A node whose state lies on a small disk of its own, and whose gateway is reached over a slow link."""

    def __init__(self, live: Live, name: str, bridge: Bridge, folder: Path) -> None:
        super().__init__(live, name, bridge)
        self.state.root.rmdir()
        self._disk = folder / "disk"
        self._image = folder / "disk.img"
        self._delay = folder / "delay"
        self._ballast = self._disk / "ballast"
        self._proxy: subprocess.Popen[bytes] | None = None
        self.state = StateDir(self._disk / "s")
        self.environment["GLOWPLUG_STATE"] = str(self.state.root)

    @contextmanager
    def equipped(self) -> Iterator[None]:
        """With its disk."""
        self._disk.mkdir()
        with self._image.open("wb") as image:
            image.truncate(DISK_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))
        _run("mount", "-o", "loop", str(self._image), str(self._disk))
        try:
            self.state.root.mkdir(mode=0o700)
            yield
        finally:
            _run("umount", "--lazy", str(self._disk))

    def lay_cable(self) -> None:
        super().lay_cable()
        link = ["-m", "tests.faults.cluster.delay_proxy", self.there, str(GATEWAY_PORT)]
        self._proxy = subprocess.Popen(
            [*self.inside, sys.executable, *link, "127.0.0.1", str(GATEWAY_PORT), str(self._delay)],
            cwd=REPOSITORY,
        )

    def remove_cable(self) -> None:
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
        super().remove_cable()

    def join(self, *options: str) -> None:
        token = self.live.cli("cluster", "token", "--ttl", "10m").stdout.strip()
        address = f"{self.here}:{self.live.url.rpartition(':')[2]}"
        self.cli(
            "cluster", "join", address, "--token", token, "--name", self.name, "--listen",
            f"127.0.0.1:{GATEWAY_PORT}", "--advertise", self.there, "--timeout", UP_TIMEOUT_S, *options,
        )  # fmt: skip

    # -- faults ------------------------------------------------------------------------------------------

    def cut_one_way(self, way: str) -> None:
        """``there``: nothing of the others arrives here; ``back``: nothing of ours arrives there."""
        side = {"there": "iifname", "back": "oifname"}[way]
        _run(*self.inside, "nft", "-f", "-", told=_RULES.format(way=way, side=side))

    def mend_ways(self) -> None:
        _run(*self.inside, "nft", "delete", "table", "inet", "fault")

    def slow_down(self, delay_s: float) -> None:
        """Bytes take so long, each way."""
        partial = self._delay.with_suffix(".new")
        partial.write_text(str(delay_s))
        partial.rename(self._delay)

    def fill_disk(self) -> None:
        free = os.statvfs(self._disk)
        with contextlib.suppress(OSError), self._ballast.open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, max(free.f_bavail - 16, 1) * free.f_frsize)

    def empty_disk(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def switch_on(self) -> None:
        self.mend()
        self.cli("cluster", "join", "--timeout", UP_TIMEOUT_S)

    def kill(self, module: str) -> None:
        """One of its processes, which its supervisor starts again."""
        with contextlib.suppress(AssertionError, ProcessLookupError):  # it may be dead already
            os.kill(self.pid_of(module), signal.SIGKILL)


@contextmanager
def faulty_machine(live: Live, name: str, bridge: Bridge) -> Iterator[FaultyMachine]:
    """It leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="gp-fm-", dir="/var/tmp") as folder:
        machine = FaultyMachine(live, name, bridge, Path(folder))
        with machine.equipped(), leaving_nothing(machine):
            yield machine


def _run(*command: str, told: str = "") -> None:
    subprocess.run(command, check=True, input=told.encode(), timeout=_COMMAND_TIMEOUT_S)
