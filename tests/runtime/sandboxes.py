"""Real sandboxes for tests, on a root made of the machine's own /usr; everything is removed again."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.runtime.cgroup import ReplicaCgroup, cgroup_path
from glowplug.runtime.network import REPLICA_ADDRESS, ReplicaNetwork
from glowplug.runtime.port import Runtime, Sandbox, SandboxMount
from glowplug.types.errors import GlowplugError

# A counter that answers each connection with its next number: state that must survive a snapshot.
COUNTER = """
import socket
server = socket.create_server(("0.0.0.0", 8000))
count = 0
print("counting", flush=True)
while True:
    connection, _ = server.accept()
    count += 1
    print("counted", count, flush=True)
    connection.sendall(str(count).encode())
    connection.close()
"""
# A server that holds one kind of state, named by its argument.
HOLDER = Path(__file__).with_name("holder.py").read_text()
DEADLINE_S = 60.0


def eventually(
    condition: Callable[[], Any],
    what: str | Callable[[], str] = "",
    timeout_s: float = DEADLINE_S,
    *,
    pause_s: float = 0.02,
) -> Any:
    """The first true answer of ``condition``; fails the test at the deadline, with ``what`` is so then.

    ``pause_s``: between two looks, longer where a look is work for what is waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"it did not come true in {timeout_s:g} s: {said or condition}")
        time.sleep(pause_s)
    return answer


class Sandboxes:
    """Makes sandboxes under unique names in one folder; :meth:`remove_all` is the end of all of them."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.runtime = runtime
        self._folder = folder
        self._made: list[Sandbox] = []
        self.root = folder / "root"
        for name in ("usr", "etc", "proc", "dev", "tmp", "sys"):
            (self.root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (self.root / name).symlink_to(Path("/", name).readlink())

    def describe(self, *args: str, **changes: Any) -> Sandbox:
        """A sandbox that would run ``args``, with its own network namespace."""
        name = f"gpt-{secrets.token_hex(4)}"
        network = ReplicaNetwork(name)
        network.create()
        sandbox = Sandbox(
            id=name,
            directory=self._folder / name,
            root=self.root,
            base=self.root,
            args=args,
            env={},
            workdir="/",
            hostname=name,
            netns=network.path,
            cgroup=cgroup_path(name),
            memory_bytes=256 << 20,
            cpus=1.0,
            log=self._folder / f"{name}.log",
            mounts=(SandboxMount(Path("/usr"), "/usr"),),
        )
        self._made.append(sandbox)
        return replace(sandbox, **changes)

    def run(self, *args: str, **changes: Any) -> tuple[Sandbox, int]:
        """Create and start it, and open our side of its network; the sandbox and its pid."""
        sandbox = self.describe(*args, **changes)
        pid = self.runtime.create(sandbox)
        self.runtime.start(sandbox)
        ReplicaNetwork(sandbox.id).open_gateway()
        return sandbox, pid

    def open_gateway(self, sandbox: Sandbox) -> None:
        """Open our side of its network."""
        ReplicaNetwork(sandbox.id).open_gateway()

    def run_counter(self) -> Sandbox:
        """A running counter."""
        sandbox, _pid = self.run("python3", "-c", COUNTER)
        eventually(lambda: ask(sandbox), "the counter answers")
        return sandbox

    def copies(self, original: Sandbox, image: Path, count: int) -> list[Sandbox]:
        """Checkpoint ``original`` to the new folder ``image``, and restore it ``count`` times."""
        image.mkdir()
        self.runtime.checkpoint(original.id, image)
        return [self.restore(original, image) for _ in range(count)]

    def restore(self, original: Sandbox, image: Path, **changes: Any) -> Sandbox:
        """One copy of what ran in ``original``, reachable."""
        copy = self.describe(*original.args, **changes)
        self.runtime.restore(copy, image)
        self.open_gateway(copy)
        return copy

    def remove_all(self) -> None:
        """Nothing of any of them is left afterwards."""
        for sandbox in self._made:
            ReplicaCgroup(sandbox.id).kill_all()
            self.runtime.delete(sandbox.id)
            assert ReplicaCgroup(sandbox.id).remove(), f"processes of {sandbox.id} do not die"
            ReplicaNetwork(sandbox.id).remove()


def ask(sandbox: Sandbox) -> str | None:
    """What the counter answers; None when it does not."""
    with NamespaceSockets(str(sandbox.netns)) as sockets, closing(sockets.open(socket.AF_INET)) as connection:
        connection.settimeout(30)
        try:
            connection.connect((REPLICA_ADDRESS, 8000))
            return connection.recv(100).decode() or None
        except OSError:
            return None


@contextmanager
def running(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's that is really running ``argv``, and is killed at the end of the block."""
    process = subprocess.Popen(argv)
    try:
        command_line = Path(f"/proc/{process.pid}/cmdline")
        eventually(lambda: argv[-1].encode() in command_line.read_bytes(), "it has become what it is to be")
        yield process
    finally:
        process.kill()
        process.wait()


def failure(call: Callable[[], object]) -> GlowplugError | None:
    """The typed error that ``call`` raises, or None."""
    try:
        call()
    except GlowplugError as error:
        return error
    return None


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
