"""One network namespace per replica, in which every copy has the same address.

The namespace holds a veth pair: ``eth0`` is taken over by the sandbox's own network stack when the
container starts or is restored; ``gw0`` stays with the kernel and is our side. runsc takes *every* interface
that has an address at that moment, so ``gw0`` gets its address only afterwards
(:meth:`ReplicaNetwork.open_gateway`).
Nothing is added to the host's own network, and deleting the namespace deletes everything in it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from glowplug.types.errors import RuntimeFailed, SystemUnfit

REPLICA_ADDRESS = "10.99.0.2"
GATEWAY_ADDRESS = "10.99.0.1"
_PREFIX = 30
# Fixed hardware addresses: a restored network stack remembers its neighbour.
_REPLICA_MAC = "02:00:0a:63:00:02"
_GATEWAY_MAC = "02:00:0a:63:00:01"
_NETNS_DIR = Path("/run/netns")
_IP_TIMEOUT_S = 10.0

_SETUP = f"""link set lo up
link add eth0 address {_REPLICA_MAC} type veth peer name gw0 address {_GATEWAY_MAC}
link set eth0 addrgenmode none
link set gw0 addrgenmode none
addr add {REPLICA_ADDRESS}/{_PREFIX} dev eth0
link set eth0 up
link set gw0 up
"""


class ReplicaNetwork:
    """The network namespace of one replica. :meth:`create` and :meth:`remove` are idempotent."""

    def __init__(self, replica_id: str) -> None:
        self.name = f"gp-{replica_id}"
        self.path = _NETNS_DIR / self.name

    def create(self) -> None:
        """Make the namespace afresh, ready for a sandbox to take ``eth0``. Raises RuntimeFailed."""
        self.remove()
        _ip(["netns", "add", self.name])
        try:
            _ip(["-n", self.name, "-batch", "-"], stdin=_SETUP)
        except RuntimeFailed:
            self.remove()
            raise

    def open_gateway(self) -> None:
        """Give our side its address: to be called once the sandbox has taken over ``eth0``."""
        _ip(["-n", self.name, "addr", "replace", f"{GATEWAY_ADDRESS}/{_PREFIX}", "dev", "gw0"])

    def remove(self) -> None:
        """Delete the namespace if it exists."""
        if self.path.exists():
            _ip(["netns", "delete", self.name])


def _ip(args: list[str], stdin: str = "") -> None:
    try:
        done = subprocess.run(
            ["ip", *args], input=stdin, capture_output=True, text=True, timeout=_IP_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SystemUnfit(
            "The `ip` command is missing.", remedy="Run `glowplug doctor --fix` (it installs iproute2)."
        ) from None
    except subprocess.TimeoutExpired:
        raise RuntimeFailed(f"`ip {' '.join(args)}` did not finish within {_IP_TIMEOUT_S:g} s.") from None
    if done.returncode != 0:
        raise RuntimeFailed(
            f"`ip {' '.join(args)}` failed: {done.stderr.strip()}",
            remedy="Glowplug needs root and network namespaces; `glowplug doctor` checks both.",
        )
