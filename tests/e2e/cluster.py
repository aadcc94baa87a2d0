"""A second machine on this one: a network namespace at the end of a cable, with a state directory of its own.

The first machine is a usual :class:`~tests.e2e.live.Live` that listens on all addresses.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e import leftovers
from tests.e2e.live import GLOWPLUG, UP_TIMEOUT_S, Live

from glowplug.types.paths import StateDir

GATEWAY_PORT = 7443
_Machine = TypeVar("_Machine", bound="SecondMachine")


class SecondMachine:
    """Joined to ``live``'s cluster as ``name``. :meth:`cut` and :meth:`mend` its cable."""

    def __init__(self, live: Live, name: str) -> None:
        self.live = live
        self.name = name
        self.state = StateDir(Path(tempfile.mkdtemp(prefix="gp-e2e-", dir="/var/tmp")))
        self.environment = {**live.environment, "GLOWPLUG_STATE": str(self.state.root)}
        self.netns = f"gpt-{secrets.token_hex(4)}"
        self.cable = f"gt{secrets.token_hex(4)}"
        # A /30 of its own in 10.213.0.0/16: several tests run at once.
        block = secrets.randbelow(1 << 14) * 4
        self.here, self.there = (f"10.213.{(block + n) >> 8}.{(block + n) & 255}" for n in (1, 2))

    def lay_cable(self) -> None:
        ip("netns", "add", self.netns)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        ip("addr", "add", f"{self.here}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        for device, address in (("lo", None), ("eth0", f"{self.there}/30")):
            if address:
                ip("-n", self.netns, "addr", "add", address, "dev", device)
            ip("-n", self.netns, "link", "set", device, "up")

    def remove_cable(self) -> None:
        ip("netns", "del", self.netns)

    def cut(self) -> None:
        """Take our end of the cable down: nothing is reset, nothing arrives."""
        ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        ip("link", "set", self.cable, "up")

    @property
    def inside(self) -> list[str]:
        """What to put before a command to run it in this machine's network."""
        # Only the network is another: `ip netns exec` would hide the machine's cgroups, too.
        return ["nsenter", f"--net=/run/netns/{self.netns}"]

    def cli(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run ``glowplug`` on this machine."""
        done = subprocess.run(
            [*self.inside, str(GLOWPLUG), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        words = (
            f"on {self.name}: glowplug {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert code is None or done.returncode == code, words
        return done

    def join(self, *options: str) -> None:
        token = self.live.cli("cluster", "token", "--ttl", "10m").stdout.strip()
        address = f"{self.here}:{self.live.url.rpartition(':')[2]}"
        listen = f"{self.there}:{GATEWAY_PORT}"
        self.cli(
            "cluster", "join", address, "--token", token, "--name", self.name, "--listen", listen,
            "--timeout", UP_TIMEOUT_S, *options,
        )  # fmt: skip

    def ask(self, path: str) -> Any:
        """What the router on this machine answers to a GET."""
        script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=60).read().decode())"
        argv = [*self.inside, sys.executable, "-c", script]
        url = f"http://127.0.0.1:8080{path}"
        return json.loads(subprocess.run([*argv, url], capture_output=True, check=True, timeout=90).stdout)

    def pid_of(self, module: str) -> int:
        """Its process that runs ``python -m MODULE``."""
        for process in Path("/proc").iterdir():
            try:
                words = (process / "cmdline").read_text().split("\0") if process.name.isdigit() else []
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[1:3] == ["-m", module] and str(self.state.root) in words:
                return int(process.name)
        raise AssertionError(f"no {module} runs on {self.name} (logs: {self.state.logs})")


def nodes(live: Live) -> dict[str, dict[str, Any]]:
    """The nodes by name; the first machine's own is ``here``."""
    return {node["name"] if node["address"] else "here": node for node in live.get("/api/v1/nodes")}


def wait_for_state(live: Live, name: str, state: str, timeout_s: float = 60.0) -> float:
    """Until the node is in that state; how long it took."""
    began_s = time.monotonic()
    live.wait_for(lambda: nodes(live)[name]["state"] == state, f"{name} to be {state}", timeout_s)
    return time.monotonic() - began_s


@contextmanager
def second_machine(live: Live, name: str = "beta") -> Iterator[SecondMachine]:
    """It leaves nothing behind."""
    with leaving_nothing(SecondMachine(live, name)) as machine:
        yield machine


@contextmanager
def leaving_nothing(machine: _Machine) -> Iterator[_Machine]:
    """Its cable is laid inside of the block; after it, it is off, and nothing of it is left."""
    machine.lay_cable()
    try:
        yield machine
    finally:
        try:
            machine.cli("down")
            left = leftovers.of_state(machine.state)
            assert left == [], f"after `glowplug down` on {machine.name} (logs: {machine.state.logs})"
        finally:
            machine.remove_cable()
    shutil.rmtree(machine.state.root)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)
