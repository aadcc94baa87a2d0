"""All replicas and targets: what the agents' watch streams say, applied to where requests go.

The agents own the truth about replicas; this is a copy that follows their events. A replica of an agent that
does not answer stays here and keeps its requests: only the agent itself (or its absence from a fresh list)
ends a replica, or the silence of its whole machine (:meth:`Fleet.lose`). Everything happens in one event
loop; nothing waits except the closing of channels, which runs in tasks owned here.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Iterator
from functools import partial

from glowplug.control.attention import Attention
from glowplug.control.changes import Changes
from glowplug.control.channel import ExchangeBroken, ReplicaChannel
from glowplug.control.cold_start_log import ColdStartLog
from glowplug.control.replica_entry import Drain, Replica
from glowplug.control.server_version import ServerVersion
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.control.under_way import UnderWay
from glowplug.node.address import NodeAddress
from glowplug.types.clock import Clock
from glowplug.types.errors import NotFound, StartInterrupted
from glowplug.types.replica import ErrorInfo, Purpose, ReplicaState, ReplicaView

log = logging.getLogger(__name__)


class Fleet:
    """Targets by app and server, replicas by id. ``attention`` is paid to whatever moved."""

    def __init__(self, *, clock: Clock, timings: Timings, cold_starts: ColdStartLog) -> None:
        self.replicas: dict[str, Replica] = {}
        self.under_way = UnderWay(self.replicas)
        self.apps: dict[str, dict[str, Target]] = {}
        self.orphans: dict[str, Replica] = {}
        """Replicas of what is not deployed (any more), by id: the reconciler stops them."""
        self.attention = Attention()
        self.changes = Changes()
        self.addresses: dict[str, NodeAddress] = {}
        """Where the nodes are, by name."""
        self.duplicates: set[tuple[str, str]] = set()
        """Node and id of replicas that run on another node already: they are to be stopped there."""
        self._leaving: set[str] = set()
        self._given_up: dict[str, set[str]] = {}
        self._clock = clock
        self._timings = timings
        self._cold_starts = cold_starts
        self._closing: set[asyncio.Task[None]] = set()

    # -- targets ---------------------------------------------------------------------------------------------

    def targets(self) -> Iterator[Target]:
        """Every server of every deployed app."""
        for servers in self.apps.values():
            yield from servers.values()

    def target(self, app: str, server: str) -> Target:
        """The named server. Raises NotFound."""
        servers = self.apps.get(app)
        if servers is None:
            raise NotFound(
                f"No app {app!r} is deployed.",
                remedy="Deploy it, or see glowplug status for what is.",
                app=app,
            )
        if server not in servers:
            raise NotFound(
                f"App {app!r} has no server {server!r}.",
                remedy=f"It has: {', '.join(sorted(servers))}.",
                app=app,
                server=server,
            )
        return servers[server]

    def activate(self, app: str, versions: Iterable[ServerVersion]) -> None:
        """Make these the servers of ``app``. Servers that are no longer among them lose their callers."""
        before = self.apps.get(app, {})
        after: dict[str, Target] = {}
        for version in versions:
            target = before.get(version.spec.name)
            if target is None:
                target = Target(
                    app,
                    version,
                    clock=self._clock,
                    timings=self._timings,
                    cold_starts=self._cold_starts,
                    on_demand=partial(self.attention.pay, app, version.spec.name),
                )
            else:
                target.activate(version)
            after[version.spec.name] = target
        self.apps[app] = after
        self._adopt_orphans(app)
        for name in before.keys() - after.keys():
            self._close_target(before[name])
        self._changed()

    def remove(self, app: str) -> None:
        """Forget the app. Its replicas become orphans, which the reconciler stops."""
        for target in self.apps.pop(app, {}).values():
            self._close_target(target)
        self._changed()

    def target_of(self, replica: Replica) -> Target | None:
        """Where the replica belongs; None for an orphan."""
        return self.apps.get(replica.view.app, {}).get(replica.view.server)

    # -- replicas --------------------------------------------------------------------------------------------

    def expect(self, replica: Replica) -> None:
        """A replica the agent is about to be asked for: it counts from now on."""
        self._add(replica)
        self._changed(replica)

    def forget(self, replica: Replica) -> None:
        """The agent never took it."""
        self._remove(replica)
        self._changed(replica)

    def answered(self, node: str, view: ReplicaView) -> None:
        """The agent of ``node`` has answered a call about this replica, which may have ended since."""
        if view.id in self.replicas:
            self.apply(node, view)

    def apply(self, node: str, view: ReplicaView, *, is_listed: bool = False) -> None:
        """The agent of ``node`` says what this replica is now.

        Its events and its answers to calls come on different ways: what is older than what is known is
        dropped, unless it ``is_listed`` at the beginning of a stream, which whatever is newer follows.
        """
        if view.purpose is Purpose.CAPTURE:
            return
        replica = self.replicas.get(view.id)
        if replica is not None and replica.node != node:
            self._claimed_twice(replica, node, view)
            return
        if replica is not None and view.revision < replica.view.revision and not is_listed:
            return
        if replica is None:
            if view.state.is_final:
                return
            replica = Replica(view, node, is_leaving=node in self._leaving)
            replica.begun_at_s = self._by_our_clock(view.created_at)
            self._add(replica)
            if view.id in self._given_up.get(node, ()):
                # Its requests went elsewhere, and maybe its work: it must not do any of it again.
                log.warning("replica %s of node %s was given up: it is stopped", view.id, node)
                self.drain(replica, 0.0)
            self._moved(replica, None)
        else:
            was, owner = replica.view.state, self.target_of(replica)
            replica.view = view
            if self.target_of(replica) is not owner:  # nothing honest says so
                self._take_from(owner, replica)
                self._file(replica)
            self._moved(replica, was)
        if replica.accepted_at_s is None:
            replica.accepted_at_s = self._clock.monotonic()
        self._changed(replica)

    def synced(self, node: str, present: set[str], listed_at_s: float) -> None:
        """The agent has listed all it has; of ours, those it accepted before and does not list are gone."""
        for replica in list(self.replicas.values()):
            known_before = replica.accepted_at_s is not None and replica.accepted_at_s < listed_at_s
            if replica.node == node and known_before and replica.id not in present:
                error = ErrorInfo(
                    code=StartInterrupted.code,
                    message=f"Replica {replica.id} vanished while its agent was away.",
                    remedy="See the agent's log.",
                )
                gone = {"state": ReplicaState.FAILED, "error": error}
                self.apply(node, replica.view.model_copy(update=gone))
        if node in self._given_up:
            self._given_up[node] &= present
        self._changed()

    # -- whole nodes -----------------------------------------------------------------------------------------

    def doubt(self, node: str, *, is_silent: bool) -> None:
        """The node has been silent for a while: no new requests for its replicas. Or it speaks again."""
        for replica in self._on(node):
            replica.suspect_until_s = math.inf if is_silent else 0.0
        self._recompute_all()

    def lose(self, node: str, why: str) -> None:
        """Nobody can tell what runs on the node: as far as callers are concerned, nothing does any more."""
        gone = self._on(node)
        self._given_up.setdefault(node, set()).update(replica.id for replica in gone)
        for replica in gone:
            error = ErrorInfo(
                code=StartInterrupted.code,
                message=f"Replica {replica.id} was on node {node}, {why}.",
                remedy="It is started on another node; `glowplug cluster status` shows them.",
            )
            ended = {"state": ReplicaState.FAILED, "error": error}
            self.apply(node, replica.view.model_copy(update=ended))

    def forget_node(self, name: str) -> None:
        """The node is none any more."""
        self.addresses.pop(name, None)
        self._given_up.pop(name, None)
        self._leaving.discard(name)

    def set_leaving(self, node: str, *, is_leaving: bool) -> None:
        """The node is being drained (or no longer): what runs there is replaced by what runs elsewhere."""
        (self._leaving.add if is_leaving else self._leaving.discard)(node)
        for replica in self._on(node):
            replica.is_leaving = is_leaving
        self._recompute_all()

    def _on(self, node: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.node == node]

    def _recompute_all(self) -> None:
        for target in self.targets():
            target.recompute()
        self._changed()

    def _claimed_twice(self, known: Replica, node: str, view: ReplicaView) -> None:
        if not view.state.is_final and (node, view.id) not in self.duplicates:
            log.error("replica %s runs on %s: the one on %s is stopped", view.id, known.node, node)
            self.duplicates.add((node, view.id))
            self._changed(known)

    # -- one replica -----------------------------------------------------------------------------------------

    def drain(self, replica: Replica, grace_s: float) -> None:
        """No more requests for this replica; it is stopped when idle, at the latest after ``grace_s``."""
        deadline_s = self._clock.monotonic() + grace_s
        target = self.target_of(replica)
        if target is not None:
            target.drain(replica, deadline_s)
        elif replica.drain is None:
            replica.drain = Drain(deadline_s)
        self._changed(replica)

    def open_way(self, replica: Replica) -> None:
        """Open the way to a ready replica, or a new way if it has moved; what fails is logged."""
        endpoint = replica.view.endpoint
        known = replica.channel
        if known and known.endpoint == endpoint and known.node == self.addresses.get(replica.node):
            return
        self._close_channel(replica)
        target = self.target_of(replica)
        silence_s = target.version.spec.request_timeout_s if target else self._timings.stop_grace_s
        try:
            node = self.addresses.get(replica.node)
            if endpoint is None or node is None:
                raise FileNotFoundError("its agent tells no endpoint")
            replica.channel = ReplicaChannel(replica.id, endpoint, node, silence_limit_s=silence_s)
        except OSError as error:
            if not replica.is_unreachable:
                log.error("replica %s is ready but cannot be reached: %s", replica.id, error)
            replica.is_unreachable = True
            return
        replica.is_unreachable = False
        if target is not None:
            target.recompute()

    async def close(self) -> None:
        """Close every channel. Replicas keep running: they are the agents'."""
        for replica in list(self.replicas.values()):
            self._close_channel(replica)
        if self._closing:
            await asyncio.wait(self._closing, timeout=2.0)

    # -- inside ------------------------------------------------------------------------------------

    def _moved(self, replica: Replica, was: ReplicaState | None) -> None:
        state = replica.view.state
        if state is ReplicaState.PARKED:
            replica.is_parking = False
            if was is not ReplicaState.PARKED:
                replica.parked_at_s = self._by_our_clock(replica.view.parked_at if was is None else None)
        elif state is ReplicaState.READY:
            replica.suspect_until_s = 0.0
            replica.is_waking = replica.is_push_out_asked = replica.waits_for_gpu = False
            self.open_way(replica)
            if was is not ReplicaState.READY:
                self._got_ready(replica)
        elif state.is_final:
            self._ended(replica, was)
        target = self.target_of(replica)
        if target is not None:
            target.recompute()

    def _by_our_clock(self, stamp: float | None) -> float:
        """When that was which another machine has stamped, if its clock is right; never later than now."""
        passed_s = 0.0 if stamp is None else max(self._clock.wall() - stamp, 0.0)
        return self._clock.monotonic() - passed_s

    def _got_ready(self, replica: Replica) -> None:
        replica.ready_at_s = self._clock.monotonic()
        if replica.cold_start is not None:
            replica.cold_start.ready_at_s = replica.ready_at_s
        target = self.target_of(replica)
        if target is not None:
            target.got_ready(is_current=target.is_current(replica))
        log.info("replica %s is ready", replica.id)

    def _ended(self, replica: Replica, was: ReplicaState | None) -> None:
        self._remove(replica)
        view = replica.view
        error = view.error or ErrorInfo(
            code="replica_failed",
            message=f"Replica {replica.id} ended without saying why.",
            remedy=f"See its log: glowplug logs {replica.id}.",
        )
        target = self.target_of(replica)
        is_failure = view.state is ReplicaState.FAILED and replica.drain is None
        if is_failure:
            log.warning("replica %s failed: %s", replica.id, error.message)
        if target is not None:
            self._account_for_end(target, replica, error, is_failure=is_failure)
        replica.interrupt_all(
            ExchangeBroken(
                f"Replica {replica.id} ended before it answered.", remedy=error.remedy, replica_id=replica.id
            )
        )

    def _account_for_end(
        self, target: Target, replica: Replica, error: ErrorInfo, *, is_failure: bool
    ) -> None:
        if not is_failure:
            target.nobody_waits_for(replica)
            target.history.stopped()
        elif replica.is_waking:
            target.give_back_cold_start(replica, f"waking a parked replica failed: {error.message}")
        elif replica.ready_at_s is None and error.code == StartInterrupted.code:
            target.start_interrupted(replica, error)
        elif replica.ready_at_s is None and target.is_current(replica):
            target.start_failed(replica, error)
        else:
            if replica.cold_start is not None:
                self._cold_starts.failed(replica.cold_start, replica.view, error=error.message)
                replica.cold_start = None
            if replica.ready_at_s is not None:
                target.history.died(self._clock.monotonic() - replica.ready_at_s)

    def _add(self, replica: Replica) -> None:
        self.replicas[replica.id] = replica
        if replica.is_starting:
            self.under_way.begins(replica)
        self._file(replica)

    def _remove(self, replica: Replica) -> None:
        self.replicas.pop(replica.id, None)
        self._take_from(self.target_of(replica), replica)
        self._close_channel(replica)

    def _file(self, replica: Replica) -> None:
        target = self.target_of(replica)
        if target is None:
            self.orphans[replica.id] = replica
        else:
            target.replicas[replica.id] = replica
            target.recompute()

    def _take_from(self, owner: Target | None, replica: Replica) -> None:
        self.orphans.pop(replica.id, None)
        if owner is not None:
            owner.replicas.pop(replica.id, None)
            owner.recompute()

    def _adopt_orphans(self, app: str) -> None:
        for replica in list(self.orphans.values()):
            if replica.view.app == app and (adopter := self.target_of(replica)) is not None:
                adopter.replicas[replica.id] = self.orphans.pop(replica.id)
        for target in self.apps[app].values():
            target.recompute()

    def _close_target(self, target: Target) -> None:
        self.orphans |= target.replicas
        target.fail_held(
            lambda: NotFound(
                f"{target.name} was removed while the request waited.", remedy="Deploy it again."
            )
        )

    def _close_channel(self, replica: Replica) -> None:
        channel, replica.channel = replica.channel, None
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _changed(self, replica: Replica | None = None) -> None:
        """Something happened to this replica; or else to many."""
        self.changes.tell()
        if replica is None:
            self.attention.pay_to_all()
        else:
            self.attention.pay(replica.view.app, replica.view.server)
