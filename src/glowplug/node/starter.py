"""Bringing one replica to life: restore if a good snapshot matches, otherwise (and after any failure) cold.

Whatever goes wrong with a snapshot turns into a cold start of the same replica, with a reason, counted; the
caller waiting for it never notices more than the time it takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import subprocess
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import aiohttp

from glowplug.image.mount import Mounter, RootFilesystem
from glowplug.node import failures
from glowplug.node.container import Container, runner_digest
from glowplug.node.hooks import run_hook
from glowplug.node.race import Interrupted, before
from glowplug.node.replica import Replica
from glowplug.node.runtimes import Runtimes
from glowplug.node.talk import ReplicaTalk
from glowplug.observe.metrics import Metrics
from glowplug.snapshot import canary
from glowplug.snapshot.key import MachineIdentity, SnapshotKey
from glowplug.snapshot.store import SnapshotStore
from glowplug.snapshot.stored import Snapshot
from glowplug.types.errors import GlowplugError, ReplicaFailed, SnapshotInvalid
from glowplug.types.replica import Purpose, Stage, StartPath, StartReplica
from glowplug.types.spec import HttpCall

# What may go wrong around a sandbox without a bug of ours.
EXPECTED = (GlowplugError, OSError, TimeoutError, aiohttp.ClientError)
CANARY_TIMEOUT_S = 60.0
ACTIVATE_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 5.0
_FIRST_PROBE_S = 0.02
_SLOWEST_PROBE_S = 0.25
_THREADS = 64

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


class CorruptSnapshot(SnapshotInvalid):
    """The bytes on disk are not those that were captured."""


class Starter:
    """Starts replicas, one call each, several at once."""

    def __init__(
        self,
        runtimes: Runtimes,
        images: Mounter,
        snapshots: SnapshotStore,
        metrics: Metrics,
        machine: MachineIdentity,
    ) -> None:
        self._runtimes = runtimes
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
        runtime = self._runtimes.named(self._runtimes.choose(request.server)).identity()
        if request.server.code is not None:  # our runner's code is in the memory too
            runtime = replace(runtime, flags=(*runtime.flags, f"runner={runner_digest()}"))
        return SnapshotKey.compute(
            request.server, request.image_id, runtime, self._machine, secrets_scope=scope
        )

    async def bring_up(self, replica: Replica) -> None:
        """From nothing to an answering replica. Raises GlowplugError when even a cold start failed."""
        before_start = await self.in_thread(self._images.use, replica.request.image_id)
        await self._restore_or_start(replica)
        use = await self.in_thread(self._images.use, replica.request.image_id)
        # What several replicas of one image read at the same time counts for each of them.
        replica.change(
            mounted_as=use.kind,
            image_bytes_by_tier={
                tier: count - before_start.bytes_by_tier.get(tier, 0)
                for tier, count in use.bytes_by_tier.items()
                if count > before_start.bytes_by_tier.get(tier, 0)
            },
        )

    async def keep_trace(self, replica: Replica) -> None:
        """Remember what a replica that has just become ready read of its image."""
        request = replica.request
        await self.in_thread(self._images.keep_trace, request.image_id, request.server.command)

    async def _mount(self, replica: Replica) -> RootFilesystem:
        request = replica.request
        return await self.in_thread(self._images.mount, request.image_id, request.server.command)

    async def _restore_or_start(self, replica: Replica) -> None:
        with replica.stage(Stage.ALLOCATE):
            await self.in_thread(replica.container.allocate)
        with replica.stage(Stage.MOUNT):
            root = await self._mount(replica)
        snapshot = await self._usable_snapshot(replica)
        if snapshot is not None and await self._try_restore(replica, root, snapshot):
            return
        await self.start_cold(replica, root)

    async def start_cold(self, replica: Replica, root: RootFilesystem | None = None) -> None:
        """Run the command and wait until it answers. Raises GlowplugError."""
        if root is None:
            root = await self._mount(replica)
        container, request = replica.container, replica.request
        replica.change(path=StartPath.COLD)
        with replica.stage(Stage.HOST_INIT):
            try:
                await self.in_thread(container.write_inside, request.secrets, restored=False)
                pid = await self.in_thread(
                    container.create, root, request.secrets, replica.cpu_weight, replica.hostname
                )
                replica.watch_process(pid)
                await self.in_thread(container.start)
            except OSError as error:
                raise failures.from_system(f"{replica.id} could not start", error) from error
            except GlowplugError as error:
                raise failures.could_not_start(replica.id, request.server, error) from error
            await self.while_alive(replica, self._become_ready(replica))

    async def _become_ready(self, replica: Replica) -> None:
        """Wait until it answers, and make a serving one of ours what it is."""
        request = replica.request
        talk = ReplicaTalk(replica.container.endpoint)
        try:
            await self._wait_ready(replica, talk, request.server.startup_timeout_s)
            if request.server.code is not None and replica.view.purpose is Purpose.SERVE:
                await activate(talk, request, request.server.startup_timeout_s, restored=False)
        finally:
            await talk.close()

    async def while_alive(self, replica: Replica, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do ``work`` on a running replica. Raises ReplicaFailed as soon as its sandbox ends instead.

        A dead sandbox resets no connection: whoever talks to it would wait for the whole deadline.
        """
        watch = replica.exit_watch
        if watch is None:
            work.close()
            raise ReplicaFailed(f"{replica.id} does not run.", replica_id=replica.id)
        try:
            return await before(watch.wait(), work)
        except Interrupted:
            container = replica.container
            raise failures.exited(
                replica.id,
                replica.request.server,
                container.folder.log,
                await watch.exit_code(),
                container.cgroup.oom_kills(),
            ) from None

    async def start_restored(self, replica: Replica, root: RootFilesystem, snapshot: Snapshot) -> None:
        """Restore, verify and ask the canary. Raises GlowplugError; the caller cleans up."""
        container, request = replica.container, replica.request
        with snapshot.pin():
            verified = asyncio.wrap_future(snapshot.start_verification(self._threads))
            failure: Exception | None = None
            try:
                with replica.stage(Stage.HOST_INIT):
                    await self.in_thread(container.write_inside, request.secrets, restored=True)
                    pid = await self.in_thread(container.restore, root, replica.cpu_weight, snapshot.path)
                    replica.watch_process(pid)
                await self.while_alive(replica, self._prove(replica, snapshot))
            except Exception as error:  # noqa: BLE001 - raised below, unless corruption explains it
                failure = error
            finally:
                # Pinned until every byte was read.
                with replica.stage(Stage.FIRST_ANSWER):
                    await asyncio.wait([verified])
            if (corruption := verified.exception()) is not None:
                raise CorruptSnapshot(f"{corruption}", snapshot_id=snapshot.id) from corruption
            if failure is not None:
                raise failure
        replica.change(restored_bytes=snapshot.manifest.total_bytes)

    async def _prove(self, replica: Replica, snapshot: Snapshot) -> None:
        """Make the copy itself (secrets, randomness), then compare its answers with the captured ones."""
        request = replica.request
        talk = ReplicaTalk(replica.container.endpoint)
        try:
            with replica.stage(Stage.HOST_INIT):
                if request.server.code is not None:
                    await activate(talk, request, ACTIVATE_TIMEOUT_S, restored=True)
                elif request.server.snapshot.after_restore is not None:
                    await run_hook(request.server.snapshot.after_restore, replica.container, talk)
            with replica.stage(Stage.FIRST_ANSWER):
                for expected in snapshot.manifest.canary:
                    await ask_canary(talk, expected)
                if not snapshot.manifest.canary:
                    await self._wait_ready(replica, talk, CANARY_TIMEOUT_S)
        finally:
            await talk.close()

    async def _usable_snapshot(self, replica: Replica) -> Snapshot | None:
        """The snapshot to restore, or None with the reason noted and counted."""
        request = replica.request
        if not request.server.snapshot.enabled:
            self._note_cold(replica, "snapshots are disabled for this server")
            return None
        try:
            key = await self.in_thread(self.key, request)
            snapshot = await self.in_thread(self._snapshots.find, key)
            if snapshot is not None:
                return snapshot
            nearest = await self.in_thread(self._snapshots.nearest, key, request.app, request.server.name)
        except GlowplugError as error:
            self._note_cold(replica, error.message)
            return None
        self._note_cold(replica, nearest.reason if nearest else "no snapshot was captured yet")
        return None

    def _note_cold(self, replica: Replica, reason: str) -> None:
        replica.change(fallback_reason=reason)
        self._metrics.count_fallback(reason)

    async def _try_restore(self, replica: Replica, root: RootFilesystem, snapshot: Snapshot) -> bool:
        """Whether the restore worked; if not, everything of it is gone again and the reason is noted."""
        replica.change(path=StartPath.CPU_SNAPSHOT, snapshot_id=snapshot.id)
        try:
            await self.start_restored(replica, root, snapshot)
        except Exception as error:  # whatever it is, a cold start may still work
            reason = f"restore of {snapshot.id} failed: {in_words(error)}"
            if not isinstance(error, EXPECTED):
                logger.exception("restoring %s: this should not happen", replica.id)
            logger.warning("%s: %s", replica.id, reason)
            # The stages of the failed try stay in the record: the caller did wait for them.
            replica.change(fallback_reason=reason, snapshot_id=None, pid=None)
            self._metrics.count_fallback(reason)
            self._metrics.count_restore(succeeded=False)
            await self._note_restore(snapshot.id, error, reason)
            replica.stop_watching()
            await self.in_thread(replica.container.stop_sandbox)
            await self.in_thread(replica.container.allocate)
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
        except (
            GlowplugError
        ) as problem:  # removed meanwhile, or the disk is full: the replica is what matters
            logger.warning("could not note how the restore of %s went: %s", snapshot_id, problem)

    async def _wait_ready(self, replica: Replica, talk: ReplicaTalk, timeout_s: float) -> None:
        """Ask the ready call until it succeeds. Raises DeadlineExceeded."""
        server, container = replica.request.server, replica.container
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        pause_s, last = _FIRST_PROBE_S, "it was never asked"
        while True:
            try:
                answer = await talk.ask(server.ready, _PROBE_TIMEOUT_S)
                if answer.is_success:
                    return
                last = f"the last answer was {answer.status}"
            except (OSError, TimeoutError, aiohttp.ClientError) as error:
                last = f"the last try failed ({in_words(error)})"
            if loop.time() > deadline:
                listening = await self.in_thread(_what_listens, container)
                raise failures.never_ready(replica.id, server, container.folder.log, last, listening)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _SLOWEST_PROBE_S)


def _what_listens(container: Container) -> str:
    """What its own kernel says, if its image has `cat`; nothing otherwise."""
    argv = container.exec_argv(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return failures.listening_ports(done.stdout) if done.stdout else ""


def in_words(error: Exception) -> str:
    """What an exception says, or what it is when it says nothing (as TimeoutError does)."""
    return (error.message if isinstance(error, GlowplugError) else str(error)) or type(error).__name__


async def activate(talk: ReplicaTalk, request: StartReplica, timeout_s: float, *, restored: bool) -> None:
    """Tell our runner to become a copy of its own. Raises ReplicaFailed with the user's traceback."""
    body = {
        "env": {"HOSTNAME": request.replica_id, **request.server.env, **request.secrets},
        "restored": restored,
        "hostname": request.replica_id,
    }
    call = HttpCall(method="POST", path="/.glowplug/activate", json_body=body)
    answer = await talk.call("enter(snap=False)", call, timeout_s)
    if not answer.is_success:
        raise ReplicaFailed(
            f"{request.replica_id} failed in enter(snap=False): {answer.text()}",
            remedy="Fix the method; it runs in every copy before it answers anybody.",
            replica_id=request.replica_id,
        )


async def ask_canary(talk: ReplicaTalk, expected: canary.CanaryAnswer) -> None:
    """Raises SnapshotInvalid when the copy answers otherwise than the captured replica did."""
    call = expected.request
    answer = await talk.call("canary", call, CANARY_TIMEOUT_S)
    difference = canary.compare(expected, answer.status, answer.body)
    if difference is not None:
        raise SnapshotInvalid(
            f"The canary {call.method} {call.path} was answered differently: {difference}.",
            remedy="A cold start answers instead; after three failures the snapshot is quarantined.",
        )
