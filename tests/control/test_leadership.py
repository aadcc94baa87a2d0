"""Leading, standing by, being cut off and being deposed, with a lease that does as the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from tests.control.conftest import eventually, state_directory

from glowplug.control import candidate
from glowplug.control.candidate import only_control
from glowplug.control.http_server import open_listener
from glowplug.control.leadership import Leadership
from glowplug.control.lease import LeaderRow, Lease, Won
from glowplug.control.messages import Role
from glowplug.control.timings import Timings
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Conflict, NotLeader, Unavailable
from glowplug.types.paths import StateDir

QUICK = Timings(lease_s=4.0, lease_renew_s=0.02, lease_look_s=0.02, lease_grace_s=0.2)
OTHER = LeaderRow(term=7, holder="other", address="http://other:8080", left_s=3.0)


class FakeLease(Lease):
    """In memory."""

    def __init__(self) -> None:
        self.holder: LeaderRow | None = None
        self.is_away = False
        self.renewals = 0
        self.looked_at_s: list[float] = []
        self.taken_at_s = 0.0
        self.given_up: list[int] = []

    @property
    def is_shared(self) -> bool:
        return True

    async def take(self) -> Won | LeaderRow:
        self._answer()
        self.taken_at_s = time.monotonic()
        return self.holder or Won(8, OTHER)

    async def renew(self, term: int) -> bool:
        self._answer()
        self.renewals += 1
        return self.holder is None

    async def look(self) -> LeaderRow:
        self._answer()
        self.looked_at_s.append(time.monotonic())
        return self.holder or OTHER

    async def give_up(self, term: int) -> None:
        self._answer()
        self.given_up.append(term)

    async def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("Simulated: no database.", cause="simulated")


class Made:
    """A leadership and everything around it."""

    def __init__(self) -> None:
        self.lease, self.clock = FakeLease(), ManualClock()
        self.leadership = Leadership(self.lease, clock=self.clock, timings=QUICK)
        self.registry = CollectorRegistry()
        self.registry.register(self.leadership)
        self.ends = 0
        self.leadership.on_deposed = self._end

    def _end(self) -> None:
        self.ends += 1

    async def renewed(self) -> None:
        """Wait for two renewals: the second began after now."""
        wanted = self.lease.renewals + 2
        await eventually(lambda: self.lease.renewals >= wanted, "renewals")

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    everything = Made()
    async with everything.leadership:
        yield everything


async def test_the_first_leads_and_gives_up_in_the_end() -> None:
    made = Made()
    async with made.leadership as leadership:
        assert await leadership.try_to_lead()
        assert (leadership.role, leadership.term) == (Role.LEADER, 8)
        leadership.check()
        assert made.metric("glowplug_control_role", role="leader") == 1
        assert made.metric("glowplug_leader_term") == 8
        assert made.metric("glowplug_takeovers_total") == 0
    assert made.lease.given_up == [8]


async def test_who_stands_by_says_who_leads_and_takes_over(made: Made) -> None:
    made.lease.holder = OTHER
    assert not await made.leadership.try_to_lead()
    assert made.leadership.role is Role.STANDBY
    view = made.leadership.view()
    assert (view.leader, view.term) == (OTHER.address, 7)
    with pytest.raises(NotLeader) as refused:
        made.leadership.check()
    assert refused.value.details["leader"] == OTHER.address
    assert OTHER.address in refused.value.remedy
    leading = asyncio.create_task(made.leadership.lead())
    await asyncio.sleep(0.1)
    assert not leading.done()
    made.lease.holder = None
    await asyncio.wait_for(leading, 60)
    assert made.leadership.role is Role.LEADER
    assert made.metric("glowplug_takeovers_total") == 1


async def test_after_a_database_was_away_the_leader_is_let_go_on_first(made: Made) -> None:
    made.lease.is_away = True
    leading = asyncio.create_task(made.leadership.lead())
    await eventually(lambda: (made.metric("glowplug_lease_failures_total") or 0) > 2, "failures")
    made.lease.is_away = False
    await asyncio.wait_for(leading, 60)
    assert made.lease.taken_at_s >= made.lease.looked_at_s[0] + QUICK.lease_grace_s


async def test_a_leader_that_stood_still_may_not_act_before_it_has_asked(made: Made) -> None:
    await made.leadership.try_to_lead()
    await made.renewed()
    made.lease.is_away = True
    made.clock.advance(QUICK.lease_s + 0.1)
    assert made.leadership.role is Role.CUT_OFF
    with pytest.raises(Unavailable) as refused:
        made.leadership.check()
    assert not isinstance(refused.value, NotLeader)
    made.lease.is_away = False
    await eventually(lambda: made.leadership.role is Role.LEADER, "the lease is renewed")
    made.leadership.check()
    assert (made.leadership.term, made.ends) == (8, 0)


async def test_who_was_deposed_ends_and_gives_nothing_up() -> None:
    made = Made()
    async with made.leadership as leadership:
        await leadership.try_to_lead()
        made.lease.holder = LeaderRow(term=9, holder="other", address="http://other:8080", left_s=3.0)
        await eventually(lambda: made.ends, "it notices")
        assert leadership.role is Role.DEPOSED
        with pytest.raises(NotLeader):
            leadership.check()
        assert (leadership.view().term, leadership.view().leader) == (9, "http://other:8080")
    assert (made.ends, made.lease.given_up) == (1, [])


async def test_an_agents_refusal_makes_it_ask_at_once() -> None:
    made = Made()
    made.leadership = Leadership(made.lease, clock=made.clock, timings=Timings(lease_renew_s=600.0))
    async with made.leadership as leadership:
        await leadership.try_to_lead()
        await asyncio.sleep(0.05)
        assert made.lease.renewals == 0
        leadership.was_refused(NotLeader("Simulated: term 9 is newer."))
        await eventually(lambda: made.lease.renewals == 1, "it asks")


async def test_a_state_directory_has_one_control_plane_with_one_name(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "PREDECESSOR_S", 0.0)
    with open_listener("127.0.0.1", 0) as listener, state_directory() as other:
        async with only_control(state, listener) as me, only_control(other, listener) as somebody_else:
            assert me.id != somebody_else.id
            assert me.address == f"http://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(Conflict):
                async with only_control(state, listener):
                    pass
        async with only_control(state, listener) as again:
            assert again == me
