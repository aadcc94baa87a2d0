"""Several machines on this one: network namespaces on one bridge, which is the network between them.

The bridge's own address is where they reach the first machine, and what else listens there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.e2e.cluster import SecondMachine, ip, leaving_nothing
from tests.e2e.live import Live


class Bridge:
    """A /24 of its own in 10.214.0.0/16: several tests run at once."""

    def __init__(self) -> None:
        self.name = f"gb{secrets.token_hex(4)}"
        self._prefix = f"10.214.{secrets.randbelow(256)}"
        self.address = f"{self._prefix}.1"
        self._given = 1

    def make(self) -> None:
        ip("link", "add", self.name, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")

    def remove(self) -> None:
        ip("link", "del", self.name)

    def next_address(self) -> str:
        self._given += 1
        return f"{self._prefix}.{self._given}"


class BridgedMachine(SecondMachine):
    """On a bridge with others. ``environment`` configures its node."""

    def __init__(self, live: Live, name: str, bridge: Bridge, **environment: str) -> None:
        super().__init__(live, name)
        self.bridge = bridge
        self.here, self.there = bridge.address, bridge.next_address()
        self.environment |= environment

    def lay_cable(self) -> None:
        ip("netns", "add", self.netns)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        ip("link", "set", self.cable, "master", self.bridge.name, "up")
        ip("-n", self.netns, "link", "set", "lo", "up")
        ip("-n", self.netns, "addr", "add", f"{self.there}/24", "dev", "eth0")
        ip("-n", self.netns, "link", "set", "eth0", "up")


@contextmanager
def a_bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    bridge.make()
    try:
        yield bridge
    finally:
        bridge.remove()


@contextmanager
def bridged_machines(
    live: Live, bridge: Bridge, names: Sequence[str], **environment: str
) -> Iterator[list[BridgedMachine]]:
    """They leave nothing behind."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(leaving_nothing(BridgedMachine(live, name, bridge, **environment)))
            for name in names
        ]
