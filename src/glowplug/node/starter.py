"""Bringing one replica to life: restore if a good snapshot matches, otherwise (and after any failure) cold.

Whatever goes wrong with a snapshot turns into a cold start of the same replica, with a reason, counted; the
caller waiting for it never notices more than the time it takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import aiohttp

from glowplug.image.mount import Mounter, RootFilesystem
from glowplug.node import failures
from glowplug.node.hooks import run_hook
from glowplug.node.replica import Replica
from glowplug.node.talk import ReplicaTalk
from glowplug.observe.metrics import Metrics
from glowplug.runtime.port import Runtime
from glowplug.snapshot import canary
from glowplug.snapshot.key import MachineIdentity, SnapshotKey
from glowplug.snapshot.store import SnapshotStore
from glowplug.snapshot.stored import Snapshot
from glowplug.types.errors import DeadlineExceeded, GlowplugError, ReplicaFailed, SnapshotInvalid
from glowplug.types.replica import Purpose, Stage, StartPath, StartReplica
from glowplug.types.spec import HttpCall

CANARY_TIMEOUT_S = 60.0
ACTIVATE_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 5.0
_FIRST_PROBE_S = 0.02
_SLOWEST_PROBE_S = 0.25
_THREADS = 64

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class CorruptSnapshot(SnapshotInvalid):
    """The bytes on disk are not those that were captured."""


class Starter:
    """Starts replicas, one call each, several at once."""

    def __init__(
        self,
        runtime: Runtime,
        images: Mounter,
        snapshots: SnapshotStore,
        metrics: Metrics,
        machine: MachineIdentity,
    ) -> None:
        self._runtime = runtime
        self._images = images
        self._snapshots = snapshots
        self._metrics = metrics
        self._machine = machine
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="starter")

    def close(self) -> None:
        """Let the threads go. No start may be under way."""
        self._threads.shutdown(wait=True)

    async def in_thread(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        """Run a blocking call to its end, even if whoever waits is cancelled: it may own half-made things."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def key(self, request: StartReplica) -> SnapshotKey:
        """The snapshot key of this server here and now."""
        values = "\0".join(f"{name}={value}" for name, value in sorted(request.secrets.items()))
        scope = f"{request.app} {hashlib.blake2b(values.encode(), digest_size=8).hexdigest()}"
        return SnapshotKey.compute(
            request.server, request.image_id, self._runtime.identity(), self._machine, secrets_scope=scope
        )

    async def bring_up(self, replica: Replica) -> None:
        """From nothing to an answering replica. Raises GlowplugError when even a cold start failed."""
        with replica.stage(Stage.ALLOCATE):
            await self.in_thread(replica.container.allocate)
        with replica.stage(Stage.MOUNT):
            root = await self.in_thread(self._images.mount, replica.request.image_id)
        snapshot = await self._usable_snapshot(replica)
        if snapshot is not None and await self._try_restore(replica, root, snapshot):
            return
        await self.start_cold(replica, root)

    async def start_cold(self, replica: Replica, root: RootFilesystem | None = None) -> None:
        """Run the command and wait until it answers. Raises GlowplugError."""
        if root is None:
            root = await self.in_thread(self._images.mount, replica.request.image_id)
        container, request = replica.container, replica.request
        replica.change(path=StartPath.COLD)
        with replica.stage(Stage.HOST_INIT):
            try:
                await self.in_thread(container.write_inside, request.secrets, restored=False)
                pid = await self.in_thread(container.create, root, request.secrets, replica.cpu_weight)
                replica.watch_process(pid)
                await self.in_thread(container.start)
            except GlowplugError as error:
                raise failures.could_not_start(replica.id, request.server, error) from error
            talk = ReplicaTalk(container.endpoint)
            try:
                await self._wait_ready(replica, talk)
                if request.server.code is not None and replica.view.purpose is Purpose.SERVE:
                    await activate(talk, request, restored=False)
            finally:
                await talk.close()

    async def start_restored(self, replica: Replica, root: RootFilesystem, snapshot: Snapshot) -> None:
        """Restore, verify and ask the canary. Raises GlowplugError; the caller cleans up."""
        container, request = replica.container, replica.request
        with snapshot.pin():
            verified = asyncio.wrap_future(snapshot.start_verification(self._threads))
            try:
                with replica.stage(Stage.HOST_INIT):
                    await self.in_thread(container.write_inside, request.secrets, restored=True)
                    pid = await self.in_thread(container.create, root, {}, replica.cpu_weight)
                    replica.watch_process(pid)
                    await self.in_thread(container.restore, snapshot.path)
                await self._prove(replica, snapshot)
            finally:
                # Pinned until every byte was read; and corruption explains whatever else went wrong.
                with replica.stage(Stage.FIRST_ANSWER):
                    await asyncio.wait([verified])
                if (corruption := verified.exception()) is not None:
                    raise CorruptSnapshot(f"{corruption}", snapshot_id=snapshot.id) from corruption
        replica.change(restored_bytes=snapshot.manifest.total_bytes)

    async def _prove(self, replica: Replica, snapshot: Snapshot) -> None:
        """Make the copy itself (secrets, randomness), then compare its answers with the captured ones."""
        request = replica.request
        talk = ReplicaTalk(replica.container.endpoint)
        try:
            with replica.stage(Stage.HOST_INIT):
                if request.server.code is not None:
                    await activate(talk, request, restored=True)
                elif request.server.snapshot.after_restore is not None:
                    await run_hook(
                        request.server.snapshot.after_restore, replica.container, talk, self.exec_argv
                    )
            with replica.stage(Stage.FIRST_ANSWER):
                for expected in snapshot.manifest.canary:
                    await ask_canary(talk, expected)
                if not snapshot.manifest.canary:
                    await self._wait_ready(replica, talk)
        finally:
            await talk.close()

    async def _usable_snapshot(self, replica: Replica) -> Snapshot | None:
        """The snapshot to restore, or None with the reason noted."""
        request = replica.request
        if not request.server.snapshot.enabled:
            replica.change(fallback_reason="snapshots are disabled for this server")
            return None
        try:
            key = await self.in_thread(self.key, request)
            snapshot = await self.in_thread(self._snapshots.find, key)
            if snapshot is None:
                nearest = await self.in_thread(self._snapshots.nearest, key, request.app, request.server.name)
                replica.change(fallback_reason=nearest.reason if nearest else "no snapshot was captured yet")
            return snapshot
        except GlowplugError as error:
            replica.change(fallback_reason=error.message)
            return None

    async def _try_restore(self, replica: Replica, root: RootFilesystem, snapshot: Snapshot) -> bool:
        """Whether the restore worked; if not, everything of it is gone again and the reason is noted."""
        replica.change(path=StartPath.CPU_SNAPSHOT, snapshot_id=snapshot.id)
        try:
            await self.start_restored(replica, root, snapshot)
        except (GlowplugError, OSError, TimeoutError, aiohttp.ClientError) as error:
            reason = (
                f"restore of {snapshot.id} failed: {error}" if str(error) else f"restore failed: {error!r}"
            )
            replica.stop_watching()
            await self.in_thread(replica.container.stop_sandbox)
            await self.in_thread(replica.container.allocate)
            # The stages of the failed try stay in the record: the caller did wait for them.
            replica.change(fallback_reason=reason, snapshot_id=None, pid=None)
            self._metrics.count_fallback(reason)
            self._metrics.count_restore(succeeded=False)
            await self._note_restore(snapshot.id, error, reason)
            return False
        self._metrics.count_restore(succeeded=True, restored_bytes=snapshot.manifest.total_bytes)
        await self._note_restore(snapshot.id, None, "")
        return True

    async def _note_restore(self, snapshot_id: str, error: Exception | None, reason: str) -> None:
        try:
            if isinstance(error, CorruptSnapshot):  # bytes do not heal: never again
                await self.in_thread(self._snapshots.quarantine, snapshot_id, reason)
            else:
                await self.in_thread(self._snapshots.record_restore, snapshot_id, error is None, reason)
        except GlowplugError as error:  # removed meanwhile, or the disk is full: the replica is what matters
            self._metrics.count_fallback(f"could not note the restore: {error.message}")

    async def _wait_ready(self, replica: Replica, talk: ReplicaTalk) -> None:
        """Ask the ready call until it succeeds. Raises ReplicaFailed or DeadlineExceeded."""
        server, container = replica.request.server, replica.container
        loop = asyncio.get_running_loop()
        deadline = loop.time() + server.startup_timeout_s
        pause_s, last = _FIRST_PROBE_S, "it was never asked"
        while True:
            watch = replica.exit_watch
            if watch is None or watch.has_ended:
                code = await watch.exit_code() if watch else None
                raise failures.exited(
                    replica.id, server, container.folder.log, code, container.cgroup.oom_kills()
                )
            if replica.stop_requested.is_set():
                raise ReplicaFailed(f"{replica.id} was stopped while it was starting.", replica_id=replica.id)
            try:
                answer = await talk.ask(server.ready, _PROBE_TIMEOUT_S)
                if answer.is_success:
                    return
                last = f"the last answer was {answer.status}"
            except (OSError, TimeoutError, aiohttp.ClientError) as error:
                last = f"the last try failed ({error or type(error).__name__})"
            if loop.time() > deadline:
                listening = await self.in_thread(self._what_listens, replica.id)
                raise failures.never_ready(replica.id, server, container.folder.log, last, listening)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _SLOWEST_PROBE_S)

    def exec_argv(self, replica_id: str, command: list[str]) -> list[str]:
        """The host command that runs ``command`` inside the replica."""
        return self._runtime.exec_argv(replica_id, command, tty=False)

    def _what_listens(self, replica_id: str) -> str:
        argv = self.exec_argv(replica_id, ["cat", "/proc/net/tcp"])
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return ""
        return failures.listening_ports(done.stdout) if done.returncode == 0 else ""


async def activate(talk: ReplicaTalk, request: StartReplica, *, restored: bool) -> None:
    """Tell our runner to become a copy of its own. Raises ReplicaFailed with the user's traceback."""
    body = {
        "env": {**request.server.env, **request.secrets},
        "restored": restored,
        "hostname": request.replica_id,
    }
    answer = await talk.ask(
        HttpCall(method="POST", path="/.glowplug/activate", json_body=body), ACTIVATE_TIMEOUT_S
    )
    if not answer.is_success:
        raise ReplicaFailed(
            f"{request.replica_id} failed in enter(snap=False): {answer.text()}",
            remedy="Fix the method; it runs in every copy before it answers anybody.",
            replica_id=request.replica_id,
        )


async def ask_canary(talk: ReplicaTalk, expected: canary.CanaryAnswer) -> None:
    """Raises SnapshotInvalid when the copy answers otherwise than the captured replica did."""
    call = expected.request
    try:
        answer = await talk.ask(call, CANARY_TIMEOUT_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The canary {call.method} {call.path} was not answered within {CANARY_TIMEOUT_S:g} s.",
            stage=Stage.FIRST_ANSWER.value,
        ) from None
    difference = canary.compare(expected, answer.status, answer.body)
    if difference is not None:
        raise SnapshotInvalid(
            f"The canary {call.method} {call.path} was answered differently: {difference}.",
            remedy="A cold start answers instead; after three failures the snapshot is quarantined.",
        )
