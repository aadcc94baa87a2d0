"""One replica while the agent works on it: what was asked for, what it holds, how long each stage took."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glowplug.kernel.processes import pid_start_ticks
from glowplug.node.container import CAPTURE_HOSTNAME, Container
from glowplug.node.exits import ExitWatch
from glowplug.node.record import AwayDevices, ReplicaFile
from glowplug.node.table import ReplicaTable
from glowplug.types.paths import StateDir
from glowplug.types.replica import Purpose, ReplicaState, ReplicaView, Stage, StartReplica

BACKGROUND_CPU_WEIGHT = 20
NORMAL_CPU_WEIGHT = 100
# How far a start is: it is begun anew after the agent's death, and every restore changes this ten times.
_TOLD_ONLY = frozenset({"stage", "stages_s"})

logger = logging.getLogger(__name__)


class Replica:
    """A replica in the hands of this agent. Every change of its view is told to watchers."""

    def __init__(
        self,
        state: StateDir,
        table: ReplicaTable,
        request: StartReplica,
        container: Container,
        purpose: Purpose,
        created_at: float,
        gpus: Sequence[str] = (),
    ) -> None:
        self._state = state
        self._table = table
        self.request = request
        self.container = container
        self.exit_watch: ExitWatch | None = None
        self.stop_requested = asyncio.Event()
        self.heat = asyncio.Lock()
        """Held while it is parked or woken: one thing at a time."""
        self.file = ReplicaFile(
            view=ReplicaView(
                id=request.replica_id,
                app=request.app,
                server=request.server.name,
                deployment_id=request.deployment_id,
                purpose=purpose,
                runtime=container.runtime,
                state=ReplicaState.STARTING,
                endpoint=container.endpoint,
                created_at=created_at,
                gpus=list(gpus),
            ),
            server=request.server,
            image_id=request.image_id,
        )
        self.file.view = self._table.put(self.file.view)

    @property
    def id(self) -> str:
        """The replica's id."""
        return self.request.replica_id

    @property
    def view(self) -> ReplicaView:
        """What everybody else sees of it."""
        return self.file.view

    @property
    def hostname(self) -> str:
        """What the sandbox is called when it starts cold."""
        return CAPTURE_HOSTNAME if self.view.purpose is Purpose.CAPTURE else self.id

    @property
    def cpu_weight(self) -> int:
        """Captures yield the processor to whoever serves."""
        return BACKGROUND_CPU_WEIGHT if self.view.purpose is Purpose.CAPTURE else NORMAL_CPU_WEIGHT

    def change(self, **changes: object) -> None:
        """Change the view, tell the watchers, and write it down if a successor of the agent needs to know."""
        self.file.view = self._table.put(self.file.view.model_copy(update=changes))
        if not changes.keys() - _TOLD_ONLY:
            return
        try:
            if self.container.folder.path.exists():
                self.container.folder.save(self.file)
        except OSError as error:
            # A full disk must not keep a replica from being stopped. A successor that finds an old record
            # adopts it or cleans it up; either is right.
            logger.error("could not write down that %s changed: %s", self.id, error)

    @property
    def may_leave_devices(self) -> bool:
        """Whether its device memory goes to the host when it is parked, so that others can use its GPUs."""
        return self.request.server.snapshot.gpu and bool(self.view.gpus)

    def note_moving(self) -> None:
        """Its device memory is about to be moved: written down before, and until it is known where it is."""
        self.file.is_moving = True
        self.change(gpus=self.view.gpus)

    def note_devices(self, gpus: Sequence[str], away: AwayDevices | None) -> None:
        """Its device memory is on these GPUs, or ``away``."""
        self.file.is_moving, self.file.away = False, away
        self.change(gpus=list(gpus), suspended_bytes=away.held_bytes if away else None)

    def watch_process(self, pid: int) -> ExitWatch:
        """Remember the sandbox's process and watch for its end."""
        self.stop_watching()
        self.exit_watch = ExitWatch(pid, self._state.exits, watched_since=self.view.created_at)
        self.file.pid_started_ticks = pid_start_ticks(pid)
        self.change(pid=pid)
        return self.exit_watch

    def stop_watching(self) -> None:
        """Forget the process (it is about to be removed on purpose)."""
        if self.exit_watch is not None:
            self.exit_watch.close()
            self.exit_watch = None

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time a stage; its seconds add to what the same stage took before."""
        started = time.monotonic()
        self.change(stage=stage)
        try:
            yield
        finally:
            spent_s = self.view.stages_s.get(stage, 0.0) + time.monotonic() - started
            self.change(stages_s={**self.view.stages_s, stage: round(spent_s, 6)})
