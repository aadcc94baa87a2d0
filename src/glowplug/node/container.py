"""One replica's container, from its folder and namespace to its removal: the owner of everything it uses.

All calls block and are made in threads. :func:`remove_leftovers` removes what a container left, at any moment
and also when another process made it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from glowplug.image.mount import RootFilesystem
from glowplug.node import page_merging
from glowplug.node.record import ReplicaFolder, write_private
from glowplug.node.runtimes import Runtimes
from glowplug.runtime.cgroup import ReplicaCgroup, cgroup_path
from glowplug.runtime.network import REPLICA_ADDRESS, ReplicaNetwork, SpareNetworks
from glowplug.runtime.port import ContainerEdits, Runtime, Sandbox, SandboxMount
from glowplug.types.errors import InvalidInput, RuntimeFailed
from glowplug.types.paths import StateDir
from glowplug.types.replica import Endpoint
from glowplug.types.spec import ServerSpec, VolumeSpec
from glowplug.weights import streaming

INSIDE = "/run/glowplug"
LIBRARY = "/.glowplug/lib"
CODE = "/app"
_PACKAGE = Path(__file__).resolve().parents[1]
_SEEN_INSIDE = (".", "nccl", "sdk", "types", "weights")
_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\t{hostname}\n"
# What captured memory remembers as its host name. Our runner gives every copy its own, which needs the
# capability (inside the sandbox's own kernel only); a plain command keeps this one, and it resolves.
CAPTURE_HOSTNAME = "glowplug"
_RUNNER_CAPABILITIES = ("CAP_SYS_ADMIN",)


class Container:
    """The container of one replica of ``server``, in the runtime called ``runtime``. Raises SystemUnfit.

    Its network is taken from ``networks``; ``edits`` give it its GPUs.
    """

    def __init__(
        self,
        state: StateDir,
        runtimes: Runtimes,
        runtime: str,
        replica_id: str,
        server: ServerSpec,
        networks: SpareNetworks,
        edits: ContainerEdits | None = None,
    ) -> None:
        self.id = replica_id
        self.runtime = runtime
        self._state = state
        self._runtime = runtimes.named(runtime)
        self._server = server
        self._networks = networks
        self._edits = edits
        self._network = ReplicaNetwork(replica_id)
        self.folder = ReplicaFolder(state, replica_id)
        self.cgroup = ReplicaCgroup(replica_id)
        self.endpoint = Endpoint(netns=str(self._network.path), host=REPLICA_ADDRESS, port=server.port)
        self._sandbox: Sandbox | None = None

    @property
    def merges_pages(self) -> bool:
        """Whether copies share identical pages: trusted servers only, as it tells them about each other."""
        return self._server.trusted and self.runtime == "runc" and page_merging.is_possible()

    def allocate(self) -> None:
        """Folder and network namespace."""
        self.folder.create()
        self._network.create(self._networks)

    def write_inside(self, secrets: dict[str, str], *, restored: bool) -> None:
        """Write what a copy may read about itself at /run/glowplug, and its name resolution."""
        told = {"replica_id": self.id, "restored": restored, "env": self._server.env, "secrets": secrets}
        write_private(self.folder.inside / "env.json", json.dumps(told))
        # The captured memory remembers its host name; both names must resolve without a network.
        hosts = _HOSTS.format(hostname=self.id) + f"127.0.0.1\t{CAPTURE_HOSTNAME}\n"
        (self.folder.path / "hosts").write_text(hosts)
        (self.folder.path / "hostname").write_text(f"{self.id}\n")
        (self.folder.path / "resolv.conf").write_text("")

    def create(self, root: RootFilesystem, secret_env: dict[str, str], cpu_weight: int, hostname: str) -> int:
        """Create the sandbox, nothing running in it yet; returns its pid."""
        self._sandbox = self._describe(root, secret_env, cpu_weight, hostname)
        return self._runtime.create(self._sandbox)

    def start(self) -> None:
        """Run the command, and open our side of the network."""
        if self._sandbox is None:
            raise RuntimeError(f"{self.id}: the sandbox was not created")
        self._runtime.start(self._sandbox)
        self._network.open_gateway()

    def restore(self, root: RootFilesystem, cpu_weight: int, image: Path) -> int:
        """Make the sandbox from captured memory, and open our side of the network; returns its pid."""
        sandbox = replace(self._describe(root, {}, cpu_weight, self.id), merges_pages=self.merges_pages)
        pid = self._runtime.restore(sandbox, image)
        self._network.open_gateway()
        return pid

    def checkpoint(self, image: Path, *, is_memory: bool) -> None:
        """Write the memory to ``image``; the application ends.

        If the image ``is_memory``, the kernel counts it as the sandbox's, which has no limit any more then.
        """
        if is_memory:
            self.cgroup.lift_memory_limit()
        self._runtime.checkpoint(self.id, image)

    def signal(self, name: str) -> None:
        """Signal the first process."""
        self._runtime.signal(self.id, name)

    def kill(self) -> None:
        """Kill the sandbox where it stands; whoever watches it cleans up."""
        self.cgroup.kill_all()

    def exec_argv(self, command: list[str], *, tty: bool = False, pid_file: Path | None = None) -> list[str]:
        """The host command line that runs ``command`` inside."""
        return self._runtime.exec_argv(self.id, command, tty=tty, pid_file=pid_file)

    def end_exec(self, pid_file: Path) -> None:
        """Kill the process whose pid `exec` left in ``pid_file``, if it still runs, and remove the file."""
        pid = exec_pid(pid_file)
        if pid is not None:
            with contextlib.suppress(RuntimeFailed):  # it ended by itself, or the sandbox did
                self._runtime.signal(self.id, "SIGKILL", pid)
        pid_file.unlink(missing_ok=True)

    def end_execs(self) -> None:
        """Kill what was started in it by `exec` and has lost whoever asked for it."""
        for pid_file in self.folder.execs.glob("*"):
            self.end_exec(pid_file)

    def stop_sandbox(self) -> None:
        """Remove the sandbox and what it held, but keep the folder, namespace and log for another try."""
        self._sandbox = None
        _remove_sandbox([self._runtime], self.id)

    def _describe(
        self, root: RootFilesystem, secret_env: dict[str, str], cpu_weight: int, hostname: str
    ) -> Sandbox:
        server = self._server
        env = {**root.env, **server.env}
        # Of our runner, and of whatever says `from glowplug import hooks`, or `weights`.
        env["PYTHONPATH"] = ":".join(p for p in (LIBRARY, env.get("PYTHONPATH", "")) if p)
        if server.snapshot.enabled and server.snapshot.weights == "stream":
            env[streaming.VARIABLE] = streaming.STREAM
        return Sandbox(
            id=self.id,
            directory=self.folder.bundle,
            root=root.root,
            base=root.base,
            args=tuple(server.command),
            env={**env, **secret_env},
            workdir=root.workdir,
            hostname=hostname,
            netns=self._network.path,
            cgroup=cgroup_path(self.id),
            memory_bytes=server.resources.memory_bytes,
            cpus=server.resources.cpus,
            log=self.folder.log,
            mounts=tuple(self._mounts(root)),
            cpu_weight=cpu_weight,
            host_changes_volumes=any(not volume.read_only for volume in server.volumes),
            extra_capabilities=_RUNNER_CAPABILITIES if server.code is not None else (),
            edits=self._edits,
        )

    def _mounts(self, root: RootFilesystem) -> list[SandboxMount]:
        mounts = [SandboxMount(bind.source, bind.destination, bind.read_only) for bind in root.binds]
        for name in ("hosts", "hostname", "resolv.conf"):
            mounts.append(SandboxMount(self.folder.path / name, f"/etc/{name}"))
        mounts.append(SandboxMount(self.folder.inside, INSIDE))
        mounts.append(SandboxMount(_PACKAGE, f"{LIBRARY}/glowplug"))
        if self._server.code is not None:
            mounts.append(SandboxMount(Path(self._server.code.local_dir), CODE))
        return mounts + [_volume_mount(root, volume, self._state) for volume in self._server.volumes]


def _volume_mount(root: RootFilesystem, volume: VolumeSpec, state: StateDir) -> SandboxMount:
    """Raises InvalidInput where the folder is not there, holds what is ours, or would be written to by it."""
    if not Path(volume.host_path).is_dir():
        raise InvalidInput(
            f"The volume {volume.host_path} is not a folder on this node.",
            remedy="Create it, or correct the path in volumes=.",
            path=volume.host_path,
        )
    place, ours = Path(volume.host_path).resolve(), state.root.resolve()
    if place.is_relative_to(ours) or ours.is_relative_to(place):
        raise InvalidInput(
            f"The volume {volume.host_path} would show {state.root}, with secrets and the agent's socket.",
            remedy="Choose another folder in volumes=.",
            path=volume.host_path,
        )
    root.check_mount_point(volume.mount_path)
    return SandboxMount(Path(volume.host_path), volume.mount_path, volume.read_only)


@cache
def runner_digest() -> str:
    """SHA-256 (16 hex digits) of what containers see of this package's code when the runner serves them."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in _SEEN_INSIDE for file in (_PACKAGE / folder).glob("*.py")):
        digest.update(f"{file.relative_to(_PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def remove_leftovers(state: StateDir, runtimes: Runtimes, replica_id: str) -> None:
    """Remove everything that a replica of this id may have left, whoever made it; its log stays.

    The folder goes last: as long as it is there, the next agent tries again. May be called at any moment, and
    twice. Raises GlowplugError or OSError when something does not go.
    """
    folder = ReplicaFolder(state, replica_id)
    record = folder.load()
    _remove_sandbox(runtimes.holding(record.view.runtime if record else None), replica_id)
    ReplicaNetwork(replica_id).remove()
    folder.remove()


def _remove_sandbox(runtimes: Sequence[Runtime], replica_id: str) -> None:
    cgroup = ReplicaCgroup(replica_id)
    # Killed first, the sandbox need not be asked to end: `runsc delete` then takes 30 ms instead of 160.
    cgroup.kill_all()
    try:
        for runtime in runtimes:
            runtime.delete(replica_id)
    finally:
        is_gone = cgroup.remove()
    if not is_gone:
        raise RuntimeFailed(f"Processes of {replica_id} do not die.", sandbox=replica_id)


def exec_pid(pid_file: Path) -> int | None:
    """The pid, as the runtime left it, of what `exec` started; None if it did not come to run yet."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if pid > 1 else None
