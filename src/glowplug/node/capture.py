"""Capturing snapshots in the background of serving.

A capture replica is started like any other but yields the processor, holds no secrets and never sees a
caller. It is warmed up, asked its canary again and again (an answer that is not repeatable proves nothing),
frozen, sealed, and restored once on trial before its snapshot can be found by anybody.

However many replicas ask for captures, there is never a storm: one capture per key, and at most
``CAPTURES_AT_ONCE`` on the node that nobody asked for by hand; the others wait their turn. After a failure
the key waits, longer each time; so does a key that is captured again and again because its snapshots go bad.
"""

from __future__ import annotations

import asyncio
import logging
import secrets as randomness
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from glowplug.image.mount import Mounter
from glowplug.node import failures
from glowplug.node.capacity import Capacity
from glowplug.node.gpu_snapshots import GpuStage
from glowplug.node.leftovers import Leftovers
from glowplug.node.preparation import prepare
from glowplug.node.probation import NodeProbation
from glowplug.node.replica import Replica
from glowplug.node.start_times import StartTimes
from glowplug.node.starter import EXPECTED, Starter
from glowplug.observe.metrics import Metrics
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.manifest import CaptureTimings, ManifestDraft
from glowplug.snapshot.secrets_scan import find_secrets
from glowplug.snapshot.staging import Staging
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, KeyMissing, SnapshotInvalid, Unavailable
from glowplug.types.replica import (
    Purpose,
    ReplicaState,
    SnapshotStatus,
    SnapshotView,
    StartReplica,
)

FIRST_RETRY_S = 5.0
SLOWEST_RETRY_S = 3600.0
CAPTURES_AT_ONCE = 1
"""A capture costs a cold start's processor time and the disk's whole bandwidth: two would slow each other."""

NewReplica = Callable[[StartReplica, Purpose], Replica]

logger = logging.getLogger(__name__)


@dataclass
class _Attempts:
    """What happened to the captures of one key so far: failures in a row, and captures that worked."""

    failures: int = 0
    captures: int = 0
    gave_way: int = 0
    not_before_s: float = 0.0

    def wait_s(self) -> float:
        """Seconds until the next capture may begin: doubled by each failure, and from the second capture on.

        The first recapture is free: whatever damaged a snapshot, its successor is wanted soon.
        """
        count = max(self.gave_way, self.failures) or self.captures - 1
        return min(FIRST_RETRY_S * 2 ** (count - 1), SLOWEST_RETRY_S) if count > 0 else 0.0


@dataclass
class Captures:
    """All captures of this node. ``new_replica`` makes the agent's own bookkeeping for one.

    ``captured`` is told the id of every new snapshot.
    """

    starter: Starter
    images: Mounter
    snapshots: SnapshotStore
    start_times: StartTimes
    probation: NodeProbation
    capacity: Capacity
    metrics: Metrics
    clock: Clock
    leftovers: Leftovers
    new_replica: NewReplica
    captured: Callable[[str], object]
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _views: dict[str, SnapshotView] = field(default_factory=dict)
    _attempts: dict[str, _Attempts] = field(default_factory=dict)
    _waiting: dict[str, StartReplica] = field(default_factory=dict)
    _background: set[str] = field(default_factory=set)
    _on_gpus: set[str] = field(default_factory=set)
    _giving_way: set[str] = field(default_factory=set)
    _images: dict[str, str] = field(default_factory=dict)
    _is_closed: bool = False

    def views(self) -> list[SnapshotView]:
        """Captures under way, and the last failure of each key that has no snapshot."""
        return list(self._views.values())

    def images_in_use(self) -> set[str]:
        """Images that are being captured."""
        return set(self._images.copy().values())

    async def wanted(self, request: StartReplica) -> None:
        """A replica of this server had to start cold: capture it if that is sensible now, else remember.

        Never fails: the replica that asks serves, with a snapshot or without.
        """
        if request.server.why_no_snapshot:
            return
        try:
            key = await self.starter.in_thread(self.starter.key, request)
            if await self.starter.in_thread(self._is_worth_capturing, key):
                self._begin_if_sensible(key, request)
        except Exception:
            logger.exception("could not begin to capture %s/%s", request.app, request.server.name)

    async def room_was_made(self) -> None:
        """Something ended: try again what found no room."""
        waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            await self.wanted(request)

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Around a promise to who serves: if it lacks a GPU, captures let theirs go, and come again later.

        Those that somebody asked for by hand do not. ``details["captures"]`` of the error says what they do:
        ``give_way`` or ``go_on``.
        """
        try:
            yield
        except Unavailable as error:
            if error.details.get("resource") == "gpu" and self._on_gpus:
                error.details["captures"] = "give_way" if self._give_way() else "go_on"
            raise

    def _give_way(self) -> bool:
        """Whether any does."""
        leaving = self._on_gpus & self._background
        for key_id in leaving - self._giving_way:
            # Not before its first step: a task that is cancelled before that cleans up nothing.
            asyncio.get_running_loop().call_soon(self._tasks[key_id].cancel)
        self._giving_way |= leaving
        return bool(leaving)

    def _begin_if_sensible(self, key: SnapshotKey, request: StartReplica) -> None:
        attempts = self._attempts.get(key.id)
        is_too_early = attempts is not None and self.clock.monotonic() < attempts.not_before_s
        if is_too_early and attempts is not None and attempts.gave_way:
            self._waiting[key.id] = request
        if self._is_closed or is_too_early or key.id in self._tasks:
            return
        if len(self._tasks) >= CAPTURES_AT_ONCE:
            self._waiting[key.id] = request
            return
        try:
            self.begin(key, request)
        except Unavailable:
            self._waiting[key.id] = request
        else:
            self._background.add(key.id)

    def begin(self, key: SnapshotKey, request: StartReplica) -> SnapshotView:
        """Start capturing now. Raises Conflict (under way) or Unavailable (no room, or the agent leaves)."""
        if self._is_closed:
            raise Unavailable("The node agent is leaving.", remedy="Try again in a moment.")
        if key.id in self._tasks:
            raise Conflict(f"Snapshot {key.id} is being captured right now.", snapshot_id=key.id)
        replica_id = f"{request.app[:20]}-{request.server.name[:20]}-capture-{randomness.token_hex(2)}"
        self.capacity.reserve(replica_id, request.server.resources)
        view = SnapshotView(
            id=key.id,
            app=request.app,
            server=request.server.name,
            status=SnapshotStatus.CAPTURING,
            created_at=self.clock.wall(),
            key=key.digest,
            key_fields=dict(key.fields),
        )
        self._views[key.id] = view
        self._images[key.id] = request.image_id
        if request.server.resources.gpu_count:
            self._on_gpus.add(key.id)
        self._tasks[key.id] = asyncio.create_task(self._run(key, request, replica_id))
        return view

    async def close(self) -> None:
        """Give up what is under way, and clean up after it."""
        self._is_closed = True
        self._waiting.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: SnapshotKey, request: StartReplica, replica_id: str) -> None:
        started = time.monotonic()
        try:
            await self._capture(key, request, replica_id)
        except asyncio.CancelledError:
            if key.id not in self._giving_way:
                raise
            self._note_gave_way(key, request)
        except Exception as error:  # whatever it is, the agent and the replica that serves go on
            if not isinstance(error, EXPECTED):
                logger.exception("capturing %s: this should not happen", key.id)
            self._note_failure(key, error)
        else:
            self._note_success(key)
            self.metrics.count_capture(succeeded=True, capture_s=time.monotonic() - started)
            self.captured(key.id)
            logger.info("captured %s of %s/%s", key.id, request.app, request.server.name)
        finally:
            self._tasks.pop(key.id, None)
            for names in (self._background, self._on_gpus, self._giving_way):
                names.discard(key.id)
            self._images.pop(key.id, None)
            self.capacity.release(replica_id)
        if not self._is_closed:
            await self.room_was_made()

    def _note_success(self, key: SnapshotKey) -> None:
        self._views.pop(key.id, None)
        attempts = self._attempts.setdefault(key.id, _Attempts())
        attempts.failures = attempts.gave_way = 0
        attempts.captures += 1
        attempts.not_before_s = self.clock.monotonic() + attempts.wait_s()

    def _note_gave_way(self, key: SnapshotKey, request: StartReplica) -> None:
        self._views.pop(key.id, None)
        attempts = self._attempts.setdefault(key.id, _Attempts())
        attempts.gave_way += 1
        attempts.not_before_s = self.clock.monotonic() + attempts.wait_s()
        self._waiting[key.id] = request
        logger.info("the capture of %s gave its GPU to who needs it now", key.id)

    def _note_failure(self, key: SnapshotKey, error: Exception) -> None:
        attempts = self._attempts.setdefault(key.id, _Attempts())
        attempts.failures += 1
        wait_s, reason = attempts.wait_s(), failures.in_words(error)
        attempts.not_before_s = self.clock.monotonic() + wait_s
        view = self._views[key.id]
        self._views[key.id] = view.model_copy(
            update={
                "status": SnapshotStatus.QUARANTINED,
                "failures": attempts.failures,
                "reason": f"capture failed: {reason} (next try in {wait_s:g} s at the earliest)",
            }
        )
        self.metrics.count_capture(succeeded=False)
        logger.warning("capture of %s failed: %s", key.id, reason)

    async def _capture(self, key: SnapshotKey, request: StartReplica, replica_id: str) -> None:
        keeps_secrets, devices = request.server.snapshot.secrets_in_snapshot, self.starter.devices
        quiet = request.model_copy(
            update={"replica_id": replica_id, "secrets": request.secrets if keeps_secrets else {}}
        )
        started = time.monotonic()
        expected_bytes = request.server.resources.memory_bytes // 4
        async with self._staging(key, expected_bytes) as staging:
            replica = self.new_replica(quiet, Purpose.CAPTURE)
            try:
                await self.starter.in_thread(replica.container.allocate)
                allocated = time.monotonic()
                await self.starter.start_cold(replica)
                cold_s = time.monotonic() - allocated
                with devices.stage(replica, GpuStage.QUIESCE):
                    prepared = await self.starter.while_alive(replica, prepare(replica))
                frozen = time.monotonic()
                gpus = await devices.suspend(replica)
                replica.stop_watching()
                with devices.stage(replica, GpuStage.HOST_SNAPSHOT):
                    await self.starter.in_thread(
                        replica.container.checkpoint, staging.files, is_memory=staging.files != staging.path
                    )
                frozen_s = time.monotonic() - frozen
            finally:
                await self._discard(replica)
            if not keeps_secrets:
                await self._refuse_secrets(staging, request.secrets)
            draft = ManifestDraft(
                app=request.app,
                server=request.server.name,
                deployment=request.deployment_id,
                canary=prepared.canary,
                hook_ports=prepared.hook_ports,
                gpus=gpus,
                timings=CaptureTimings(
                    capture_s=time.monotonic() - started, frozen_s=frozen_s, cold_s=cold_s
                ),
                tools={"runtime": key.fields["runtime"]},
            )
            await self._try_and_publish(staging, draft, quiet)

    @asynccontextmanager
    async def _staging(self, key: SnapshotKey, expected_bytes: int) -> AsyncIterator[Staging]:
        """``snapshots.begin`` in threads: removing a failed capture of many GB takes seconds."""
        begun = self.snapshots.begin(key, expected_bytes)
        staging = await self.starter.in_thread(begun.__enter__)
        try:
            yield staging
        except BaseException as error:
            await self.starter.in_thread(begun.__exit__, type(error), error, error.__traceback__)
            raise
        else:
            await self.starter.in_thread(begun.__exit__, None, None, None)

    async def _refuse_secrets(self, staging: Staging, secrets: dict[str, str]) -> None:
        wanted = {name: value.encode() for name, value in secrets.items()}
        found = await self.starter.in_thread(find_secrets, staging.files, wanted)
        if found:
            names = ", ".join(sorted({hit.name for hit in found}))
            raise SnapshotInvalid(
                f"The captured memory holds the secret(s) {names}; the snapshot was thrown away.",
                remedy="Keep secrets out of env= and of code that runs before the snapshot, or allow it with "
                "Snapshot(secrets_in_snapshot=True).",
            )

    async def _try_and_publish(self, staging: Staging, draft: ManifestDraft, request: StartReplica) -> None:
        """Seal, restore once on trial, publish."""
        sealed = await self.starter.in_thread(staging.seal, draft)
        trial_id = f"{request.replica_id}-trial"
        self.capacity.hand_over(request.replica_id, trial_id)
        try:
            trial = self.new_replica(request.model_copy(update={"replica_id": trial_id}), Purpose.CAPTURE)
            try:
                root = await self.starter.in_thread(self.images.mount, request.image_id)
                await self.starter.in_thread(trial.container.allocate)
                await self.starter.start_restored(trial, root, sealed)
            finally:
                await self._discard(trial)
        finally:
            self.capacity.hand_over(trial_id, request.replica_id)
        await self.starter.in_thread(staging.publish)

    async def _discard(self, replica: Replica) -> None:
        """The replica has done its duty, or failed: nothing of it stays but a line in the table."""
        replica.stop_watching()
        await self.leftovers.remove(replica.id)
        replica.change(state=ReplicaState.STOPPED, ended_at=self.clock.wall(), pid=None, endpoint=None)

    def _is_worth_capturing(self, key: SnapshotKey) -> bool:
        """Whether a snapshot is missing that this node would restore."""
        if self.probation.quarantine is not None or self.start_times.opted_out(key.id) is not None:
            return False
        try:
            return self.snapshots.find(key) is None
        except SnapshotInvalid:
            return True
        except KeyMissing:  # it is good, and a capture would take its place
            return False
