"""Whether this control plane leads: waits until it may, renews its lease, and says when it may no longer act.

Four roles. ``standby``: another one leads, or nobody knows who. ``leader``. ``cut_off``: the lease has run
out by our own clock and the database does not answer, so that somebody else may lead by now; ready replicas
are served on, and nothing is decided until the database says who leads. ``deposed``: somebody else does; for
good, as the process ends and its successor stands by.

A leader that stood still for a while finds its lease run out before it does anything else: it is asked before
every order to an agent (``Authority``). What slips through is refused by the agent and the database, by term.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.control.database import not_leader
from glowplug.control.lease import LeaderRow, Lease, Won
from glowplug.control.messages import LeadershipView, Role
from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, NotLeader, Unavailable

log = logging.getLogger(__name__)

_GIVE_UP_WITHIN_S = 3.0
_RETRY_S = 0.2


class Leadership(Collector):
    """One control plane's part in it; an async context manager that gives the lease up when left.

    ``on_deposed`` is called when we should end: somebody else leads. Calls to agents ask it first.
    """

    def __init__(self, lease: Lease, *, clock: Clock, timings: Timings) -> None:
        self.on_deposed: Callable[[], None] = lambda: None
        self._lease = lease
        self._clock = clock
        self._timings = timings
        self._won: Won | None = None
        self._seen: LeaderRow | None = None
        self._is_deposed = False
        self._valid_until_s = -math.inf
        self._hurry = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._takeovers = 0
        self._failures = 0
        self._is_failing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._won is not None and not self._is_deposed:
            self._valid_until_s = -math.inf
            await self._give_up(self._won.term)
        await self._lease.close()

    # -- becoming the leader -------------------------------------------------------------------------------

    async def try_to_lead(self) -> bool:
        """Ask once. Raises Unavailable."""
        asked_at_s = self._clock.monotonic()
        answer = await self._lease.take()
        if isinstance(answer, LeaderRow):
            self._note(answer)
            return False
        self._begin(answer, asked_at_s)
        return True

    async def lead(self) -> None:
        """Wait until we do."""
        while True:
            try:
                if await self.try_to_lead():
                    return
            except Unavailable as error:
                log.warning("standing by, and cannot see who leads: %s", error.details.get("cause"))
                await self._wait_for_the_database()
                continue
            left_s = self._seen.left_s if self._seen else 0.0
            # At the latest a moment after it runs out, should it not be renewed.
            await asyncio.sleep(min(self._timings.lease_look_s, max(left_s, 0.0) + 0.01))

    async def _wait_for_the_database(self) -> None:
        """Until it answers, and the leader it was away from has had time to go on leading."""
        while True:
            self._failures += 1
            await asyncio.sleep(self._timings.lease_look_s)
            with suppress(Unavailable):
                self._note(await self._lease.look())
                break
        await asyncio.sleep(self._timings.lease_grace_s)

    def _note(self, row: LeaderRow) -> None:
        if self._seen is None or self._seen.term != row.term:
            log.info("standing by: %s leads, term %d", row.address, row.term)
        self._seen = row

    def _begin(self, won: Won, asked_at_s: float) -> None:
        self._won = won
        self._valid_until_s = self._until_s(asked_at_s)
        if self._seen is not None:
            self._takeovers += 1
            log.warning("taking over from %s: leading from now on, term %d", won.was.address, won.term)
        else:
            log.info("leading, term %d", won.term)
        self._keeping = asyncio.get_running_loop().create_task(self._keep(won.term))
        self._keeping.add_done_callback(self._kept)

    # -- staying it ----------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """What we are now."""
        if self._won is None:
            return Role.STANDBY
        if self._is_deposed:
            return Role.DEPOSED
        return Role.LEADER if self._clock.monotonic() < self._valid_until_s else Role.CUT_OFF

    @property
    def term(self) -> int | None:
        """Ours; None before we led."""
        return self._won.term if self._won else None

    @property
    def shared_address(self) -> str | None:
        """Where the others of this database reach us; None where there can be no others."""
        return self._lease.address if self._lease.is_shared else None

    def check(self) -> None:
        """May we act? Raises NotLeader, or Unavailable while nobody can tell."""
        role = self.role
        if role in (Role.STANDBY, Role.DEPOSED):
            raise self.refusal()
        if role is Role.CUT_OFF:
            self._hurry.set()
            raise Unavailable(
                "This control plane's lease has run out, and its database does not say who leads.",
                remedy="Ready replicas go on serving. Look at PostgreSQL: what waits goes on with it.",
                retry_after_s=1,
                term=self.term,
            )

    def refusal(self) -> NotLeader:
        """What a caller is told who needs the leader."""
        seen = None if self.role.serves else self._seen
        return not_leader(seen.address if seen else "", seen.term if seen else 0)

    def was_refused(self, error: NotLeader) -> None:
        """An agent has seen a newer term."""
        log.warning("an agent refuses orders of term %s: %s", self.term, error.message)
        self._hurry.set()

    async def _keep(self, term: int) -> None:
        """Renew until deposed. With a database of our own there is nothing to renew, only to be told."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timings.lease_renew_s if self._lease.is_shared else None):
                    await self._hurry.wait()
            self._hurry.clear()
            asked_at_s = self._clock.monotonic()
            try:
                is_ours = await self._lease.renew(term)
            except GlowplugError as error:
                self._not_renewed(term, error)
                await asyncio.sleep(min(_RETRY_S, self._timings.lease_renew_s))
                continue
            if not is_ours:
                await self._depose()
                return
            self._valid_until_s = self._until_s(asked_at_s)
            if self._is_failing:
                self._is_failing = False
                log.warning("the lease of term %d is renewed again", term)

    def _not_renewed(self, term: int, error: GlowplugError) -> None:
        self._failures += 1
        if not self._is_failing:
            self._is_failing = True
            log.error("the lease of term %d is not renewed: %s %s", term, error, error.details.get("cause"))

    async def _give_up(self, term: int) -> None:
        try:
            async with asyncio.timeout(_GIVE_UP_WITHIN_S):
                await self._lease.give_up(term)
        except (GlowplugError, TimeoutError) as error:
            log.warning("the lease of term %d is not given up, and runs out by itself: %s", term, error)
        else:
            log.info("term %d is over: the lease is given up", term)

    def _kept(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the lease is renewed no more", exc_info=error)
            self.on_deposed()

    async def _depose(self) -> None:
        self._is_deposed = True
        with suppress(Unavailable):
            self._seen = await self._lease.look()
        log.critical("deposed: %s", self.refusal())
        self.on_deposed()

    def _until_s(self, asked_at_s: float) -> float:
        """When the lease runs out at the latest: counted from before it was asked for."""
        return asked_at_s + self._timings.lease_s if self._lease.is_shared else math.inf

    # -- what others see -----------------------------------------------------------------------------------

    def view(self) -> LeadershipView:
        """For the status."""
        role, seen = self.role, self._seen
        leads = role.serves
        return LeadershipView(
            role=role,
            term=(self.term if leads else None) or (seen.term if seen else 0),
            leader=None if leads or seen is None else seen.address,
            is_shared=self._lease.is_shared,
        )

    def collect(self) -> Iterable[Metric]:
        """Role, term, takeovers and failures."""
        view = self.view()
        role = GaugeMetricFamily(
            "glowplug_control_role", "1 for what this control plane is now.", labels=("role",)
        )
        for one in Role:
            role.add_metric((one.value,), float(one is view.role))
        yield role
        yield GaugeMetricFamily("glowplug_leader_term", "The newest term known here.", value=view.term)
        yield CounterMetricFamily(
            "glowplug_takeovers", "Times this process took over from another leader.", value=self._takeovers
        )
        yield CounterMetricFamily(
            "glowplug_lease_failures",
            "Times the database did not say who leads when it was asked.",
            value=self._failures,
        )
