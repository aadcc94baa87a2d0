"""Bringing one replica to life: restore if a good snapshot matches, otherwise (and after any failure) cold.

Whatever goes wrong with a snapshot turns into a cold start of the same replica, with a reason, counted; the
caller waiting for it never notices more than the time it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import aiohttp

from glowplug.image.mount import Mounter, RootFilesystem
from glowplug.node import failures, questions
from glowplug.node.gpu_snapshots import GpuSnapshots, GpuStage
from glowplug.node.hooks import restore_timeout_s, run_hook, run_registered
from glowplug.node.large_pages import LargePages
from glowplug.node.probation import NodeProbation
from glowplug.node.race import Interrupted, before
from glowplug.node.replica import Replica
from glowplug.node.restore_watch import RestoreWatch, RestoreWatches, TooFarAway
from glowplug.node.runtimes import Runtimes
from glowplug.node.snapshot_choice import SnapshotChoice
from glowplug.node.snapshot_search import SnapshotSearch
from glowplug.node.start_key import start_key
from glowplug.node.start_times import StartTimes
from glowplug.node.talk import ReplicaTalk
from glowplug.node.verification import EXPLAINED_S, Verification
from glowplug.observe.metrics import Metrics
from glowplug.snapshot.key import MachineIdentity, SnapshotKey
from glowplug.snapshot.store import SnapshotStore
from glowplug.snapshot.stored import Snapshot
from glowplug.snapshot.verification import Verifications
from glowplug.types.content import bytes_by_tier, chunks_by_tier, read_since
from glowplug.types.errors import GlowplugError, NotFound, ReplicaFailed, SnapshotInvalid
from glowplug.types.replica import Purpose, Stage, StartPath, StartReplica

# What may go wrong around a sandbox without a bug of ours.
EXPECTED = (GlowplugError, OSError, TimeoutError, aiohttp.ClientError)
_THREADS = 64

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


class CorruptSnapshot(SnapshotInvalid):
    """The bytes on disk are not those that were captured."""


@dataclass(frozen=True)
class StartOutcome:
    """What a start says of the snapshot with this key: it took so long, from memory or without."""

    key_id: str
    seconds: float
    is_restored: bool


class Starter:
    """Starts replicas, one call each, several at once."""

    def __init__(
        self,
        runtimes: Runtimes,
        images: Mounter,
        snapshots: SnapshotStore,
        metrics: Metrics,
        machine: MachineIdentity,
        start_times: StartTimes,
        probation: NodeProbation,
        watches: RestoreWatches,
        large_pages: LargePages,
        devices: GpuSnapshots,
        search: SnapshotSearch | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._images = images
        self._snapshots = snapshots
        self._metrics = metrics
        self._machine = machine
        self._start_times = start_times
        self._probation = probation
        self._watches = watches
        self._large_pages = large_pages
        self.devices = devices
        self._choice = SnapshotChoice(snapshots, search, start_times, watches, devices, probation)
        self._verifications = Verifications()
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
        return start_key(request, self._runtimes, self._machine)

    async def bring_up(self, replica: Replica) -> StartOutcome | None:
        """From nothing to an answering replica. Raises GlowplugError when even a cold start failed.

        What it says of a snapshot, if anything, is to be given to :meth:`remember` when callers are served.
        """
        before_start = await self.in_thread(self._images.use, replica.request.image_id)
        outcome = await self._restore_or_start(replica)
        use = await self.in_thread(self._images.use, replica.request.image_id)
        reads = read_since(before_start.reads, use.reads)
        # What several replicas of one image read at the same time counts for each of them.
        replica.change(
            mounted_as=use.kind,
            image_bytes_by_tier=bytes_by_tier(reads),
            image_chunks_by_tier=chunks_by_tier(reads),
        )
        return outcome

    async def remember(self, replica: Replica, outcome: StartOutcome) -> None:
        """Write down what a start says. Nobody waits for it: it takes the disk's time, not the caller's."""
        if not outcome.is_restored:
            await self.in_thread(self._start_times.note_cold, outcome.key_id, outcome.seconds)
            return
        await self._note_restore(replica, outcome.key_id, None, "")
        await self.in_thread(self._start_times.note_restore, outcome.key_id, outcome.seconds)

    async def keep_trace(self, replica: Replica) -> None:
        """Remember what a replica that has just become ready read of its image."""
        request = replica.request
        await self.in_thread(self._images.keep_trace, request.image_id, request.server.command)

    async def _mount(self, replica: Replica) -> RootFilesystem:
        request = replica.request
        return await self.in_thread(self._images.mount, request.image_id, request.server.command)

    async def _restore_or_start(self, replica: Replica) -> StartOutcome | None:
        with replica.stage(Stage.ALLOCATE):
            await self.in_thread(replica.container.allocate)
        with replica.stage(Stage.MOUNT):
            root = await self._mount(replica)
            key = await self._key_or_none(replica)
            snapshot = None if key is None else await self._usable_snapshot(replica, key)
        is_restored = snapshot is not None and await self._try_restore(replica, root, snapshot)
        if not is_restored:
            await self.start_cold(replica, root)
        if key is None or (snapshot is not None and not is_restored):
            return None
        return StartOutcome(key.id, sum(replica.view.stages_s.values()), is_restored)

    async def start_cold(self, replica: Replica, root: RootFilesystem | None = None) -> None:
        """Run the command and wait until it answers. Raises GlowplugError."""
        if root is None:
            root = await self._mount(replica)
        container, request = replica.container, replica.request
        await self.in_thread(self.devices.check_start, replica)
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
            await questions.wait_ready(replica, talk, request.server.startup_timeout_s)
            if request.server.code is not None and replica.view.purpose is Purpose.SERVE:
                await questions.activate(talk, request, request.server.startup_timeout_s, restored=False)
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
        await self.in_thread(self.devices.check_fit, replica.id, snapshot.manifest.gpus)
        with ExitStack() as held:
            held.enter_context(snapshot.pin())
            fetched_before = await self.in_thread(snapshot.fetched)

            def give_up() -> None:
                snapshot.give_up()
                replica.container.kill()

            server = replica.request.server
            async with self._watches.over(snapshot, server, lambda: self.in_thread(give_up)) as watch:
                with replica.stage(Stage.MOUNT):
                    try:
                        files = await self.in_thread(snapshot.open)
                    except SnapshotInvalid as damage:
                        raise CorruptSnapshot(damage.message, snapshot_id=snapshot.id) from damage
                await self._restore_verified(replica, root, snapshot, files, watch, held)
            reads = await self.in_thread(snapshot.read_by_tier, fetched_before)
        replica.change(
            restored_bytes=snapshot.manifest.total_bytes,
            snapshot_bytes_by_tier=bytes_by_tier(reads),
            snapshot_chunks_by_tier=chunks_by_tier(reads),
        )

    async def _restore_verified(
        self,
        replica: Replica,
        root: RootFilesystem,
        snapshot: Snapshot,
        files: Path,
        watch: RestoreWatch,
        held: ExitStack,
    ) -> None:
        """Restore while all bytes are hashed beside it; ``held`` has the pin."""
        async with Verification.running(self._verifications, snapshot, self._threads, held) as verification:
            failure: Exception | None = None
            try:
                await self._restore_and_prove(replica, root, snapshot, files)
            except Exception as error:  # noqa: BLE001 - raised below, unless damage explains it
                failure = error
            with replica.stage(Stage.FIRST_ANSWER):
                # What failed is explained by damage, perhaps; bytes from far away are not waited for.
                is_hopeless = failure is not None and (watch.is_far or watch.problem is not None)
                await verification.wait(EXPLAINED_S if is_hopeless else None)
        problem = verification.problem
        if isinstance(problem, SnapshotInvalid):
            raise CorruptSnapshot(problem.message, snapshot_id=snapshot.id) from problem
        if failure is not None:
            raise failure
        if problem is not None:
            raise problem

    async def _restore_and_prove(
        self, replica: Replica, root: RootFilesystem, snapshot: Snapshot, files: Path
    ) -> None:
        container, gpus = replica.container, snapshot.manifest.gpus
        with replica.stage(Stage.HOST_INIT), self.devices.stage(replica, GpuStage.HOST_RESTORE):
            await self.in_thread(container.write_inside, replica.request.secrets, restored=True)
            pid = await self.in_thread(self._restore, replica, root, files)
            replica.watch_process(pid)
        if gpus:
            with replica.stage(Stage.DEVICE_INIT):
                await self.devices.resume(replica, gpus)
        await self.while_alive(replica, self._prove(replica, snapshot))

    def _restore(self, replica: Replica, root: RootFilesystem, files: Path) -> int:
        """The pid of the sandbox whose memory is back."""
        with self._large_pages.given():
            return replica.container.restore(root, replica.cpu_weight, files)

    async def _prove(self, replica: Replica, snapshot: Snapshot) -> None:
        """Make the copy itself (secrets, randomness), then compare its answers with the captured ones."""
        request = replica.request
        talk = ReplicaTalk(replica.container.endpoint)
        try:
            with replica.stage(Stage.HOST_INIT):
                ports = snapshot.manifest.hook_ports
                limit_s = restore_timeout_s(request.server)
                await run_registered(replica.id, replica.container.endpoint, ports, "after_restore", limit_s)
                if request.server.code is not None:
                    await questions.activate(talk, request, questions.ACTIVATE_TIMEOUT_S, restored=True)
                elif request.server.snapshot.after_restore is not None:
                    await run_hook(request.server.snapshot.after_restore, replica.container, talk)
            with replica.stage(Stage.FIRST_ANSWER), self.devices.stage(replica, GpuStage.CANARY):
                for expected in snapshot.manifest.canary:
                    await questions.ask_canary(talk, expected)
                if not snapshot.manifest.canary:
                    await questions.wait_ready(replica, talk, questions.CANARY_TIMEOUT_S)
        finally:
            await talk.close()

    async def _key_or_none(self, replica: Replica) -> SnapshotKey | None:
        """The key of this start, or None where it has nothing to do with snapshots, with the reason noted."""
        if reason := replica.request.server.why_no_snapshot:
            self._note_cold(replica, reason)
            return None
        try:
            return await self.in_thread(self.key, replica.request)
        except GlowplugError as error:
            self._note_cold(replica, error.message)
            return None

    async def _usable_snapshot(self, replica: Replica, key: SnapshotKey) -> Snapshot | None:
        """The snapshot to restore, or None with the reason noted and counted."""
        try:
            found = await self.in_thread(self._choice.choose, key, replica.request)
        except GlowplugError as error:
            found = error.message
        if isinstance(found, Snapshot):
            return found
        self._note_cold(replica, found)
        return None

    def _note_cold(self, replica: Replica, reason: str) -> None:
        replica.change(fallback_reason=reason)
        self._metrics.count_fallback(reason)

    async def _try_restore(self, replica: Replica, root: RootFilesystem, snapshot: Snapshot) -> bool:
        """Whether the restore worked; if not, everything of it is gone again and the reason is noted."""
        path = StartPath.GPU_SNAPSHOT if snapshot.manifest.gpus else StartPath.CPU_SNAPSHOT
        replica.change(path=path, snapshot_id=snapshot.id)
        try:
            await self.start_restored(replica, root, snapshot)
        except Exception as error:  # whatever it is, a cold start may still work
            reason = f"restore of {snapshot.id} failed: {failures.in_words(error)}"
            if not isinstance(error, EXPECTED):
                logger.exception("restoring %s: this should not happen", replica.id)
            logger.warning("%s: %s", replica.id, reason)
            # The stages of the failed try stay in the record: the caller did wait for them.
            replica.change(fallback_reason=reason, snapshot_id=None, pid=None)
            self._metrics.count_fallback(reason)
            self._metrics.count_restore(succeeded=False)
            await self._note_restore(replica, snapshot.id, error, reason)
            replica.stop_watching()
            await self.in_thread(replica.container.stop_sandbox)
            await self.in_thread(replica.container.allocate)
            return False
        self._metrics.count_restore(succeeded=True, restored_bytes=snapshot.manifest.total_bytes)
        return True

    async def _note_restore(
        self, replica: Replica, snapshot_id: str, error: Exception | None, reason: str
    ) -> None:
        if isinstance(error, TooFarAway):  # says nothing about the snapshot, or this node
            self._watches.note_far(snapshot_id)
            return
        if error is None:
            await self.in_thread(self._probation.note_success)
        elif not isinstance(error, NotFound):  # removed by somebody meanwhile
            await self.in_thread(self._probation.note_failure, snapshot_id, failures.in_words(error))
        try:
            if isinstance(error, CorruptSnapshot):
                await self.in_thread(self._snapshots.record_damage, snapshot_id, reason)
            else:
                server = f"{replica.request.app}/{replica.request.server.name}"
                await self.in_thread(
                    self._snapshots.record_restore, snapshot_id, error is None, reason, server
                )
        except (
            GlowplugError
        ) as problem:  # removed meanwhile, or the disk is full: the replica is what matters
            logger.warning("could not note how the restore of %s went: %s", snapshot_id, problem)
