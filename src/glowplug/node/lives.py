"""The life of every replica on this machine: from the start to the removal of the last trace of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from glowplug.node import failures
from glowplug.node.capacity import Capacity
from glowplug.node.capture import Captures
from glowplug.node.leftovers import Leftovers
from glowplug.node.page_merging import PageMerging
from glowplug.node.race import Interrupted, before
from glowplug.node.replica import Replica
from glowplug.node.starter import Starter
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import ErrorInfo, ReplicaState

_KILL_AGAIN_S = 0.05
_STOP_ALL_DEADLINE_S = 60.0

logger = logging.getLogger(__name__)


class Lives:
    """All serving replicas, by id, each with the task that is its life. Lives on the agent's event loop."""

    def __init__(
        self,
        starter: Starter,
        captures: Captures,
        merging: PageMerging,
        leftovers: Leftovers,
        capacity: Capacity,
        clock: Clock,
    ) -> None:
        self.replicas: dict[str, Replica] = {}
        self._starter = starter
        self._captures = captures
        self._merging = merging
        self._leftovers = leftovers
        self._capacity = capacity
        self._clock = clock
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, replica: Replica) -> None:
        """Start it; whatever happens, it ends in a final state with nothing left behind."""
        self.replicas[replica.id] = replica
        self._lives[replica.id] = self.spawn(self._live(replica))

    def take_over(self, replica: Replica) -> None:
        """Own one of ``replicas`` that a predecessor started and that runs."""
        if replica.view.snapshot_id is not None and replica.container.merges_pages:
            self._merging.want()
        self._lives[replica.id] = self.spawn(self._until_its_end(replica))

    def stop(self, replica: Replica, grace_s: float) -> None:
        """Begin stopping: SIGTERM, ``grace_s`` seconds, then SIGKILL. Asking again changes nothing.

        One that is still starting has nothing to finish: it is killed at once.
        """
        if replica.stop_requested.is_set():
            return
        replica.stop_requested.set()
        was_starting = replica.view.state is ReplicaState.STARTING
        replica.change(state=ReplicaState.DRAINING)
        self.spawn(self._kill(replica) if was_starting else self._terminate(replica, grace_s))

    async def close(self, grace_s: float, *, stop_replicas: bool) -> None:
        """Stop what is starting, all with ``stop_replicas``, and let go of the rest: it runs on."""
        for replica in list(self.replicas.values()):
            if stop_replicas or replica.view.state is ReplicaState.STARTING:
                self.stop(replica, grace_s)
        leaving = [
            self._lives[replica.id]
            for replica in self.replicas.values()
            if replica.stop_requested.is_set() and replica.id in self._lives
        ]
        if leaving:
            await asyncio.wait(leaving, timeout=_STOP_ALL_DEADLINE_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self.replicas.values():
            replica.stop_watching()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work in the background that ends with the agent."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, replica: Replica) -> None:
        """A replica's whole life, from start to the removal of its last trace."""
        try:
            outcome = await before(replica.stop_requested.wait(), self._starter.bring_up(replica))
        except asyncio.CancelledError:
            await self.end(replica, ReplicaState.STOPPED, None)
            raise
        except Interrupted:
            outcome = None
        except GlowplugError as error:
            await self._end_of_start(replica, error)
            return
        except Exception as error:  # a bug of ours must not leave a replica nobody owns
            logger.exception("starting %s failed", replica.id)
            await self._end_of_start(replica, GlowplugError(f"Starting {replica.id} failed: {error!r}"))
            return
        if replica.stop_requested.is_set():
            await self.end(replica, ReplicaState.STOPPED, None)
            return
        replica.change(state=ReplicaState.READY, ready_at=self._clock.wall(), stage=None)
        logger.info("%s is ready (%s)", replica.id, replica.view.path.value)
        if outcome is not None and outcome.is_restored:
            # Not waited for: a disk that hangs must not hide the replica's end.
            self.spawn(self._starter.remember(replica, outcome))
        elif outcome is not None:
            await self._starter.remember(replica, outcome)  # it may tell that a snapshot would not pay
        if replica.view.snapshot_id is None:
            await self._starter.keep_trace(replica)
            await self._captures.wanted(replica.request)
        elif replica.container.merges_pages:
            self._merging.want()
        await self._until_its_end(replica)

    async def _end_of_start(self, replica: Replica, error: GlowplugError) -> None:
        """It did not come up: because somebody stopped it, or by itself."""
        if replica.stop_requested.is_set():
            await self.end(replica, ReplicaState.STOPPED, None)
        else:
            await self.end(replica, ReplicaState.FAILED, error)

    async def _until_its_end(self, replica: Replica) -> None:
        """Wait for the sandbox to end, find out why, clean up."""
        watch = replica.exit_watch
        if watch is None:
            return
        await watch.wait()
        code = await watch.exit_code()
        if replica.stop_requested.is_set():
            await self.end(replica, ReplicaState.STOPPED, None, code)
            return
        container = replica.container
        error = failures.exited(
            replica.id, replica.request.server, container.folder.log, code, container.cgroup.oom_kills()
        )
        await self.end(replica, ReplicaState.FAILED, error, code)

    async def end(
        self, replica: Replica, state: ReplicaState, error: GlowplugError | None, code: int | None = None
    ) -> None:
        """Remove every trace of it but the log, then tell."""
        replica.stop_watching()
        await self._leftovers.remove(replica.id)
        self.replicas.pop(replica.id, None)
        self._lives.pop(replica.id, None)
        self._capacity.release(replica.id)
        if error is not None:
            logger.warning("%s failed: %s", replica.id, error.message)
        replica.change(
            state=state,
            ended_at=self._clock.wall(),
            exit_code=code if code is not None else _exit_code_of(error),
            error=ErrorInfo.of(error) if error else None,
            pid=None,
            endpoint=None,
        )
        await self._captures.room_was_made()

    async def _terminate(self, replica: Replica, grace_s: float) -> None:
        """SIGTERM, wait, remove. The task that watches the replica does the rest."""
        watch = replica.exit_watch
        if watch is None or watch.has_ended:
            return
        if replica.file.away is not None:  # what it does at its end would wait for the GPU for ever
            await self._kill(replica)
            return
        await self._starter.in_thread(replica.container.cgroup.thaw)
        if grace_s > 0:
            try:
                await self._starter.in_thread(replica.container.signal, "SIGTERM")
                await asyncio.wait_for(watch.wait(), grace_s)
            except TimeoutError:
                logger.info("%s did not end within %g s of SIGTERM", replica.id, grace_s)
            except GlowplugError as error:
                logger.info("%s is killed, as it cannot be asked to end: %s", replica.id, error)
        if not watch.has_ended:
            await self._kill(replica)

    async def _kill(self, replica: Replica) -> None:
        """SIGKILL the sandbox until it has ended, or somebody cleaned up after it."""
        while replica.id in self.replicas:
            await self._starter.in_thread(replica.container.kill)
            if replica.exit_watch is None or replica.exit_watch.has_ended:
                return
            await asyncio.sleep(_KILL_AGAIN_S)


def _exit_code_of(error: GlowplugError | None) -> int | None:
    code = error.details.get("exit_code") if error is not None else None
    return code if isinstance(code, int) else None
