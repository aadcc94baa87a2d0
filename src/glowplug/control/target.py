"""One server of one app, as a place requests go to: its replicas, its held requests, its failures.

A target outlives versions. Requests go to the ready replicas of the active version; while that has none, to
those of the version before it; while there are none at all they are held here, bounded in number and time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from glowplug.control import hold_errors
from glowplug.control.autoscaler import Autoscaler, Load
from glowplug.control.census import Census, take_census
from glowplug.control.cold_start_log import ColdStartLog, OpenColdStart
from glowplug.control.demand import RecentDemand
from glowplug.control.destination import Counters
from glowplug.control.heat import spare_order
from glowplug.control.holding import wait_for_replica
from glowplug.control.replica_entry import Drain, Replica
from glowplug.control.server_version import ServerVersion
from glowplug.control.start_history import StartHistory
from glowplug.control.ticket import Ticket
from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, Overloaded, ReplicaFailed
from glowplug.types.replica import ErrorInfo, ReplicaView, StartReplica

_RETRY_AFTER_OVERLOADED_S = 5


class Target:
    """Where requests for ``app/server`` go. Everything happens in one event loop; nothing here waits."""

    def __init__(
        self,
        app: str,
        version: ServerVersion,
        *,
        clock: Clock,
        timings: Timings,
        cold_starts: ColdStartLog,
        on_demand: Callable[[], None],
    ) -> None:
        self.app = app
        self.server = version.spec.name
        self.version = version
        self.replicas: dict[str, Replica] = {}
        self.held: dict[Ticket, None] = {}
        self.counters = Counters()
        self.is_stopped = False
        """Stopped by hand: min_replicas does not count until the next request."""
        self.desired = 0
        self.history = StartHistory(clock, timings)
        self.opening: OpenColdStart | None = None
        self.last_activity_s: float | None = None
        self.peak = 0
        self.in_flight = 0
        self.changes = 0
        """Grows with every change of where requests may go."""
        self.autoscaler = Autoscaler(version.spec.scaling, clock)
        self.demand = RecentDemand(clock)
        self._clock = clock
        self._timings = timings
        self._cold_starts = cold_starts
        self._on_demand = on_demand
        self._ready: list[Replica] | None = None
        self._has_spares = False

    @property
    def ready(self) -> list[Replica]:
        """Where requests go: replicas of the active version, or while there are none, of others."""
        if self._ready is None:
            serving = [replica for replica in self.replicas.values() if replica.is_serving]
            self._ready = [replica for replica in serving if self.is_wanted(replica)] or serving
        return self._ready

    @property
    def name(self) -> str:
        """``app/server``, for messages."""
        return f"{self.app}/{self.server}"

    @property
    def request_timeout_s(self) -> float:
        """How long either side of a request may stand still."""
        return self.version.spec.request_timeout_s

    # -- versions and replicas ---------------------------------------------------------------------------

    def activate(self, version: ServerVersion) -> None:
        """Start this version from now on."""
        self.version = version
        self.autoscaler.configure(version.spec.scaling)
        self.is_stopped = False
        self.history.reset()
        self.recompute()
        self._on_demand()

    def is_current(self, replica: Replica) -> bool:
        """It runs the active version."""
        return replica.view.deployment_id == self.version.deployment_id

    def is_wanted(self, replica: Replica) -> bool:
        """It runs the active version, on a node where it may stay."""
        return self.is_current(replica) and not replica.is_leaving

    def recompute(self) -> None:
        """After any change of a replica: where requests go, and whether held ones may go now."""
        self._ready = None
        self.changes += 1
        if self.held and self.pick() is not None:
            self.release_held()

    def order(self, replica_id: str) -> StartReplica:
        """What an agent is told of a replica of the active version."""
        return StartReplica(
            replica_id=replica_id,
            app=self.app,
            deployment_id=self.version.deployment_id,
            server=self.version.spec,
            image_id=self.version.image_id,
            secrets=self.version.secrets,
        )

    def live(self) -> list[Replica]:
        """Replicas of the active version that are ready or on their way, and may stay where they are."""
        return [r for r in self.replicas.values() if r.is_live and self.is_wanted(r)]

    def outdated(self) -> list[Replica]:
        """Replicas of other versions, or of nodes that are being drained, that still serve or start."""
        return [r for r in self.replicas.values() if r.is_live and not self.is_wanted(r)]

    def parked(self) -> list[Replica]:
        """Parked replicas of the active version."""
        return [r for r in self.replicas.values() if r.is_parked and self.is_wanted(r)]

    def rest(self) -> None:
        """Somebody else needs the room: what was needed here lately keeps no replica up. A request does."""
        self.last_activity_s = None
        self.autoscaler.configure(self.version.spec.scaling)

    def census(self) -> Census:
        """All of them, by what is to be done about them."""
        return take_census(self.replicas.values(), self.version.deployment_id)

    def load(self, census: Census) -> Load:
        """What the autoscaler needs to know. Resets the peak."""
        ready = sum(1 for replica in census.live if replica.is_serving)
        # What a draining replica still works on needs no other replica.
        leaving = census.leaving
        peak, self.peak = self.peak, self.in_flight + len(self.held)
        in_flight = max(self.in_flight - leaving, 0)
        starting = len(census.live) - ready
        return Load(ready, starting, in_flight, len(self.held), max(peak - leaving, 0))

    def drain(self, replica: Replica, deadline_s: float) -> None:
        """No more requests for this replica; it stops when idle, or at the deadline."""
        if replica.drain is None:
            replica.drain = Drain(deadline_s)
        else:
            replica.drain.deadline_s = min(replica.drain.deadline_s, deadline_s)
        self.recompute()

    def spare(self, surplus: int) -> None:
        """So many busy replicas get requests only when they must: otherwise each would always have a few, and
        a fleet that is larger than it should be would stay so.
        """
        if not surplus and not self._has_spares:
            return
        live = self.live()
        busy = [replica for replica in live if replica.in_flight]
        busy.sort(
            key=lambda r: spare_order(
                is_spare=r.is_spare, in_flight=len(r.in_flight), created_at_s=r.view.created_at
            )
        )
        spares = set(busy[:surplus])
        self._has_spares = bool(spares)
        for replica in live:
            replica.is_spare = replica in spares

    # -- requests ------------------------------------------------------------------------------------------

    def pick(self) -> Replica | None:
        """The ready replica with the fewest requests in flight, or None. One that is to spare is left alone
        while any other has fewer than ``target_concurrency``.
        """
        ready = self.ready
        if len(ready) == 1 and not ready[0].suspect_until_s:
            return ready[0]
        now_s = self._clock.monotonic()
        usable = [replica for replica in ready if replica.suspect_until_s <= now_s]
        room = self.version.spec.scaling.target_concurrency

        def order(replica: Replica) -> tuple[bool, int]:
            in_flight = len(replica.in_flight)
            return replica.is_spare or in_flight >= room, in_flight

        return min(usable, key=order, default=None)

    def suspect(self, replica: Replica, seconds: float) -> None:
        """The replica took no connection or broke one: avoid it for a while."""
        replica.suspect_until_s = max(replica.suspect_until_s, self._clock.monotonic() + seconds)

    def entered(self) -> None:
        """A request is in flight."""
        self.in_flight += 1
        self.demand.note()
        self.is_stopped = False
        if self.in_flight > self.peak:
            self.peak = self.in_flight

    def left(self) -> None:
        """A request is over."""
        self.in_flight -= 1
        self.last_activity_s = self._clock.monotonic()

    def reported(self, *, started: int, in_flight: int, peak: int, before: int) -> None:
        """A router on a node has begun so many requests, and has ``in_flight`` under way that were ``before``
        when it told last; ``peak`` is the most it had at once since then.
        """
        self.in_flight += in_flight - before
        self.peak = max(self.peak, self.in_flight - in_flight + peak)
        if started:
            self.demand.note(started)
        if started or before:
            self.last_activity_s = self._clock.monotonic()

    async def wait(
        self, wait_for_disconnect: Callable[[], Awaitable[bool]], *, arrived_at_s: float, is_admitted: bool
    ) -> Replica:
        """Hold a request until a replica can take it; as :func:`wait_for_replica`."""
        spec = self.version.spec
        return await wait_for_replica(
            self,
            wait_for_disconnect,
            clock=self._clock,
            arrived_at_s=arrived_at_s,
            limit_s=min(spec.request_timeout_s, spec.startup_timeout_s + self._timings.hold_slack_s),
            is_admitted=is_admitted,
        )

    def hold(self, *, is_admitted: bool) -> Ticket:
        """Queue up. ``is_admitted``: it waited before, so the bound does not apply again.

        Raises Overloaded when the queue is full, ReplicaFailed while starting is known to fail.
        """
        self.last_activity_s = self._clock.monotonic()
        if self.history.is_crash_looping and self.history.wait_s and not self.ready:
            raise self.crash_loop_error()
        limit = self.version.spec.max_held_requests
        if len(self.held) >= limit and not is_admitted:
            self.counters.rejected += 1
            raise Overloaded(
                f"{limit} requests already wait for {self.name} to start.",
                remedy="Send it again later, or raise max_held_requests.",
                retry_after_s=_RETRY_AFTER_OVERLOADED_S,
                app=self.app,
                server=self.server,
            )
        ticket = Ticket()
        self.held[ticket] = None
        self.counters.held += 0 if is_admitted else 1
        self.peak = max(self.peak, self.in_flight + len(self.held))
        self.is_stopped = False
        self._open_cold_start()
        self._on_demand()
        return ticket

    def leave(self, ticket: Ticket, *, error: str | None) -> None:
        """Out of the queue. The last one to go unserved closes what was opened for it.

        ``error`` says why it could not wait longer; None means that it has a replica or hung up.
        """
        self.held.pop(ticket, None)
        self.last_activity_s = self._clock.monotonic()
        if self.held or self.ready:
            return
        if error is None:
            self.close_cold_starts(self._cold_starts.abandoned)
        else:
            self.close_cold_starts(partial(self._cold_starts.failed, error=error))

    def release_held(self) -> None:
        """Every held request looks again."""
        for ticket in self.held:
            ticket.release()

    def fail_held(self, make_error: Callable[[], Exception]) -> None:
        """Every held request gets an error of its own (a shared one would collect all their tracebacks)."""
        for ticket in self.held:
            ticket.fail(make_error())

    # -- cold starts and failures ----------------------------------------------------------------------------

    def take_cold_start(self, replica: Replica) -> None:
        """The replica is being started: the record that is open, or a further one, is about it."""
        if not self.held:
            return
        started, self.opening = self.opening or self._new_cold_start(), None
        started.replica_id, started.node = replica.id, replica.node
        started.deployment_id = replica.view.deployment_id
        started.posted_at_s = self._clock.monotonic()
        replica.cold_start = started

    def give_back_cold_start(self, replica: Replica, reason: str | None = None) -> None:
        """Nothing came of this replica: the record stays open, with the ``reason``, for the next attempt."""
        started, replica.cold_start = replica.cold_start, None
        if started is None:
            return
        started.fallback_reason = reason or started.fallback_reason
        if self.opening is None and self.held:
            started.replica_id, started.posted_at_s = "", None
            self.opening = started
        else:
            self._cold_starts.abandoned(started)

    def close_cold_starts(self, close: Callable[[OpenColdStart, ReplicaView | None], None]) -> None:
        """Close every record that is open for a replica which is not ready yet."""
        if self.opening is not None:
            close(self.opening, None)
            self.opening = None
        for replica in self.replicas.values():
            if replica.cold_start is not None and (replica.ready_at_s is None or replica.is_waking):
                close(replica.cold_start, replica.view)
                replica.cold_start = None

    def first_answer(self, replica: Replica) -> None:
        """The first byte of an answer of a replica whose record is open."""
        if replica.cold_start is not None:
            self._cold_starts.answered(replica.cold_start, replica.view)
            replica.cold_start = None

    def nobody_waits_for(self, replica: Replica) -> None:
        """The replica is ready (or stopped) and there is no request to close its record."""
        if replica.cold_start is not None:
            self._cold_starts.abandoned(replica.cold_start, replica.view)
            replica.cold_start = None

    def start_interrupted(self, replica: Replica, error: ErrorInfo) -> None:
        """A start ended because a part of Glowplug died: its callers wait for the next one."""
        self.history.interrupted(error.message)
        self.give_back_cold_start(replica, error.message)

    def start_failed(self, replica: Replica, error: ErrorInfo) -> None:
        """A start of the active version ended before it was ready."""
        self.history.failed(replica.id, error)
        if replica.cold_start is not None:
            self._cold_starts.failed(replica.cold_start, replica.view, error=error.message)
            replica.cold_start = None
        if self.history.is_crash_looping and not self.ready and not any(r.is_starting for r in self.live()):
            self.fail_held(self.crash_loop_error)
        elif self.held:
            self._open_cold_start()

    def got_ready(self, *, is_current: bool) -> None:
        """A replica is ready, or was found ready. It is kept for a window, as if it had just been used."""
        self.last_activity_s = self._clock.monotonic()
        if is_current:
            self.history.got_ready()

    def crash_loop_error(self) -> ReplicaFailed:
        """The error for callers while starting fails."""
        return hold_errors.crash_loop(self.name, self.version.deployment_id, self.history)

    def stuck_error(self, waited_s: float) -> DeadlineExceeded:
        """The error for a caller whose patience has run out, naming the stage."""
        return hold_errors.stuck(self.name, waited_s, self.live(), self.history)

    def _open_cold_start(self) -> None:
        if self.ready or self.opening is not None:
            return
        starting = [r for r in self.live() if r.is_starting]
        if any(replica.cold_start is not None for replica in starting):
            return
        if starting:
            self._join_cold_start(starting[0])
            return
        self.opening = self._new_cold_start()

    def _join_cold_start(self, replica: Replica) -> None:
        """A replica that nobody waited for is starting: it was needed since it was asked for.

        One that is woken takes so little time that its record may begin with the request.
        """
        started = self._new_cold_start()
        head_start_s = 0.0
        if not replica.is_waking and replica.begun_at_s is not None:
            # Another machine may have said when it was begun: no start takes longer than its time.
            head_start_s = min(started.opened_at_s - replica.begun_at_s, self.version.spec.startup_timeout_s)
        started.started_at -= head_start_s
        started.opened_at_s -= head_start_s
        started.posted_at_s = started.opened_at_s
        started.replica_id, started.node = replica.id, replica.node
        replica.cold_start = started

    def _new_cold_start(self) -> OpenColdStart:
        return self._cold_starts.open(self.app, self.server, self.version.deployment_id)
