"""One network namespace per replica, in which every copy has the same address.

The namespace holds a veth pair: ``eth0`` is taken over by the sandbox's own network stack when the
container starts or is restored; ``gw0`` stays with the kernel and is our side. runsc takes *every* interface
that has an address at that moment, so ``gw0`` gets its address only afterwards
(:meth:`ReplicaNetwork.open_gateway`).
Nothing is added to the host's own network, and deleting the namespace deletes everything in it.

All of them are alike, so a few can be made before they are wanted (:class:`SpareNetworks`): a start that
finds one only gives it a name.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

from glowplug.kernel import netns
from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.types.errors import RuntimeFailed, SystemUnfit

REPLICA_ADDRESS = "10.99.0.2"
GATEWAY_ADDRESS = "10.99.0.1"
_PREFIX = 30
_NETMASK = "255.255.255.252"
# Fixed hardware addresses: a restored network stack remembers its neighbour.
_REPLICA_MAC = "02:00:0a:63:00:02"
_GATEWAY_MAC = "02:00:0a:63:00:01"
_NETNS_DIR = Path("/run/netns")
_IP_TIMEOUT_S = 30.0
_SPARES = 4
# Of linux/sockios.h; both take a struct ifreq: 16 bytes of name, 16 of address, 8 that are not used.
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C

_SETUP = f"""link set lo up
link add eth0 address {_REPLICA_MAC} type veth peer name gw0 address {_GATEWAY_MAC}
link set eth0 addrgenmode none
link set gw0 addrgenmode none
addr add {REPLICA_ADDRESS}/{_PREFIX} dev eth0
link set eth0 up
link set gw0 up
"""


class SpareNetworks:
    """A few namespaces in stock, held by descriptors only: they end with this process. For many threads."""

    def __init__(self, wanted: int = _SPARES) -> None:
        self._wanted = wanted
        self._lock = threading.Lock()
        self._spares: list[int] = []

    def fill(self) -> None:
        """Make what is missing; to be called when nobody waits. Raises RuntimeFailed or SystemUnfit."""
        while len(self._spares) < self._wanted:
            made = _make()
            with self._lock:
                self._spares.append(made)

    def take(self) -> int:
        """A descriptor of one, which the caller closes: a spare, or a new one. Raises as :meth:`fill`."""
        with self._lock:
            if self._spares:
                return self._spares.pop()
        return _make()

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            spares, self._spares = self._spares, []
        for descriptor in spares:
            os.close(descriptor)


class ReplicaNetwork:
    """The network namespace of one replica. :meth:`create` and :meth:`remove` are idempotent."""

    def __init__(self, replica_id: str) -> None:
        self.name = f"gp-{replica_id}"
        self.path = _NETNS_DIR / self.name

    def create(self, spares: SpareNetworks | None = None) -> None:
        """Have the namespace afresh, ready for a sandbox to take ``eth0``; one of ``spares`` if there are.

        Raises RuntimeFailed or SystemUnfit.
        """
        self.remove()
        descriptor = _make() if spares is None else spares.take()
        try:
            netns.name(descriptor, self.path)
        except OSError as error:
            raise _failed(f"{self.path} cannot be made", error) from error
        finally:
            os.close(descriptor)

    def open_gateway(self) -> None:
        """Give our side its address: to be called once the sandbox has taken over ``eth0``. Twice is fine.

        Raises RuntimeFailed.
        """
        try:
            with NamespaceSockets(str(self.path)) as sockets, sockets.open(socket.AF_INET) as inside:
                for request, address in ((_SIOCSIFADDR, GATEWAY_ADDRESS), (_SIOCSIFNETMASK, _NETMASK)):
                    fcntl.ioctl(inside, request, _interface_request("gw0", address))
        except OSError as error:
            raise _failed(f"The gateway in {self.path} cannot be opened", error) from error

    def remove(self) -> None:
        """Delete the namespace if it exists. Raises RuntimeFailed."""
        try:
            netns.unname(self.path)
        except OSError as error:
            raise _failed(f"{self.path} cannot be removed", error) from error


def _make() -> int:
    """A descriptor of a new namespace, ready for a sandbox."""
    try:
        return netns.make(lambda: _ip_batch(_SETUP))
    except OSError as error:
        raise _failed("A network namespace cannot be made", error) from error


def _interface_request(interface: str, address: str) -> bytes:
    where = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
    return struct.pack("16s16s8x", interface.encode(), where)


def _ip_batch(commands: str) -> None:
    """Run commands of ``ip`` where the calling thread is."""
    try:
        done = subprocess.run(
            ["ip", "-batch", "-"],
            input=commands,
            capture_output=True,
            text=True,
            timeout=_IP_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SystemUnfit(
            "The `ip` command is missing.", remedy="Run `glowplug doctor --fix` (it installs iproute2)."
        ) from None
    except subprocess.TimeoutExpired:
        raise RuntimeFailed(f"`ip -batch` did not finish within {_IP_TIMEOUT_S:g} s.") from None
    if done.returncode != 0:
        raise _failed("`ip -batch` failed", done.stderr.strip())


def _failed(what: str, why: object) -> RuntimeFailed:
    return RuntimeFailed(
        f"{what}: {why}", remedy="Glowplug needs root and network namespaces; `glowplug doctor` checks both."
    )
