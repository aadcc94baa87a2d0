"""Simulated machines that something can really run on: network namespaces of this one, on one bridge.

They share this machine's processors, memory, disks and GPUs, and nobody should measure anything on them; but
a node that joins from one has an address, a state directory and a cable of its own, as on another machine.
What exists lies in the folder and in the kernel, so that a planner that is started again finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from glowplug.pool.providers.shell import Ran, Shell, run_program
from glowplug.types.errors import Conflict, NotFound, ResourceExhausted, SystemUnfit

_IP_S = 30.0
_DOWN_S = 120.0
_HOST_NAME = "host.json"
_STATE_NAME = "s"  # names of Unix sockets below it have 107 bytes at most
_NOT_THEIRS = ("GLOWPLUG_URL", "GLOWPLUG_TOKEN", "GLOWPLUG_DATABASE_URL", "GLOWPLUG_JOIN_TOKEN")
"""What this machine's own Glowplug may have in its environment."""


@dataclass(frozen=True)
class NamespaceShell:
    """Commands in the namespace ``netns`` as on the machine whose state directory is ``state``."""

    netns: str
    state: Path

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        """See :class:`~glowplug.pool.providers.shell.Shell`."""
        # Only the network is another: `ip netns exec` would hide the machine's cgroups, too.
        inside = ["nsenter", f"--net=/run/netns/{self.netns}", "sh", "-c", command]
        return run_program(inside, timeout_s, self.netns, stdin, self.environment())

    def environment(self) -> dict[str, str]:
        """Its own state directory, and this Glowplug's program."""
        kept = {name: value for name, value in os.environ.items() if name not in _NOT_THEIRS}
        programs = f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}"
        return {**kept, "PATH": programs, "GLOWPLUG_STATE": str(self.state)}


class NamespaceHosts:
    """The machines of one simulated cloud; ``folder`` is theirs alone. Safe to use from several threads.

    The first address of ``network`` is this machine's: there machines reach the control plane.
    """

    def __init__(self, folder: Path, network: IPv4Network) -> None:
        self._folder = folder
        self._network = network
        self._mark = hashlib.blake2s(str(folder.absolute()).encode(), digest_size=4).hexdigest()
        self._lock = threading.Lock()

    @property
    def gateway(self) -> IPv4Address:
        """This machine's address on the bridge."""
        return self._network[1]

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"gpb{self._mark}"

    def running(self) -> list[str]:
        """Machines that exist, wholly or in part."""
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def start(self, machine: str) -> str:
        """Make it, if it is not there; its address. Raises SystemUnfit, ResourceExhausted."""
        with self._lock:
            folder = self._folder / machine
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            address = self._address_of(machine)
            if address is None or not self._netns_file(machine).exists():
                address = address or self._free_address()
                self._lay_cable(machine, address)
                (folder / _HOST_NAME).write_text(json.dumps({"version": 1, "address": str(address)}))
            return str(address)

    def end(self, machine: str, *, is_cut: bool = False) -> None:
        """Stop what runs there, and unmake it; ``is_cut``: it lost its power, nobody hears of it from now on.

        Quiet for one that is not there. Raises GlowplugError while something of it is left.
        """
        if not (self._folder / machine).exists():
            return
        shell, has_netns = self._shell(machine), self._netns_file(machine).exists()
        if is_cut and has_netns:
            _ip("-n", shell.netns, "link", "set", "eth0", "down")
        if shell.state.exists():
            self._stop(machine, shell, has_netns=has_netns)
        self._unmake(machine)

    def shell_of(self, machine: str, _address: str) -> Shell:
        """Commands on it. Raises NotFound for one that is not there."""
        if not self._netns_file(machine).exists():
            raise NotFound(
                f"{machine} is not there (any more).", remedy="It is asked for anew.", machine=machine
            )
        return self._shell(machine)

    # -- inside --------------------------------------------------------------------------------------------

    def _stop(self, machine: str, shell: NamespaceShell, *, has_netns: bool) -> None:
        inside = ["nsenter", f"--net=/run/netns/{shell.netns}"] if has_netns else []
        down = [*inside, "sh", "-c", "glowplug down"]
        ran = run_program(down, _DOWN_S, machine, environment=shell.environment())
        if ran.code != 0:
            raise Conflict(
                f"What runs on {machine} could not be stopped: {ran.err.strip()[-300:]}",
                remedy=f"GLOWPLUG_STATE={shell.state} glowplug down",
                machine=machine,
            )

    def _shell(self, machine: str) -> NamespaceShell:
        return NamespaceShell(self._netns(machine), self._folder / machine / _STATE_NAME)

    def _netns(self, machine: str) -> str:
        return f"gpm-{self._cable(machine).removeprefix('gpm')}"

    def _cable(self, machine: str) -> str:
        digest = hashlib.blake2s(f"{self._mark}/{machine}".encode(), digest_size=4)
        return f"gpm{digest.hexdigest()}"

    def _netns_file(self, machine: str) -> Path:
        return Path("/run/netns") / self._netns(machine)

    def _address_of(self, machine: str) -> IPv4Address | None:
        try:
            return IPv4Address(json.loads((self._folder / machine / _HOST_NAME).read_text())["address"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _free_address(self) -> IPv4Address:
        taken = {self._address_of(machine) for machine in self.running()}
        for number in range(2, self._network.num_addresses - 1):
            if self._network[number] not in taken:
                return self._network[number]
        raise ResourceExhausted(
            f"All addresses of {self._network} are given out.",
            remedy="Give the simulated provider a larger `network`.",
        )

    def _lay_cable(self, machine: str, address: IPv4Address) -> None:
        netns, cable, length = self._netns(machine), self._cable(machine), self._network.prefixlen
        self._remove_cable(machine)  # of a start that was interrupted
        if not Path(f"/sys/class/net/{self.bridge}").exists():
            _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "replace", f"{self.gateway}/{length}", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        _ip("netns", "add", netns)
        try:
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", netns)
            _ip("link", "set", cable, "master", self.bridge, "up")
            _ip("-n", netns, "addr", "add", f"{address}/{length}", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", netns, "link", "set", device, "up")
        except SystemUnfit:
            self._remove_cable(machine)
            raise

    def _remove_cable(self, machine: str) -> None:
        # Of itself the kernel removes it some time after the namespace.
        if Path(f"/sys/class/net/{self._cable(machine)}").exists():
            _ip("link", "del", self._cable(machine))
        if self._netns_file(machine).exists():
            _ip("netns", "del", self._netns(machine))

    def _unmake(self, machine: str) -> None:
        folder = self._folder / machine
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        left = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{folder}/")]
        if left:
            raise Conflict(
                f"{len(left)} mounts of {machine} are left: {left[0]}.",
                remedy="Unmount them.",
                machine=machine,
            )
        with self._lock:
            self._remove_cable(machine)
            shutil.rmtree(folder)
            if not self.running() and Path(f"/sys/class/net/{self.bridge}").exists():
                _ip("link", "del", self.bridge)


def _ip(*arguments: str) -> None:
    ran = run_program(["ip", *arguments], _IP_S, "this machine")
    if ran.code != 0:
        raise SystemUnfit(
            f"`ip {' '.join(arguments)}` fails: {ran.err.strip()[-300:]}",
            remedy="Simulated machines with a `network` need root and iproute2.",
        )
