"""What is done to a replica before its memory is captured: warm it up, note what it answers, run its hooks.

The answers become the snapshot's canaries: those to the declared requests, which must be repeatable; without
any, those to the warm-up requests that are, and if none is, the ready call's. An answer is repeatable when
the same request, made again and again after more than a second (answers may hold the time), is answered
equally after reduction: two throws of a die agree once in six, and would fail every copy that throws another.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from glowplug.node.hooks import find_hook_ports, run_hook, run_registered
from glowplug.node.questions import CANARY_TIMEOUT_S
from glowplug.node.replica import Replica
from glowplug.node.talk import Answer, ReplicaTalk
from glowplug.snapshot import canary
from glowplug.snapshot.canary import CanaryAnswer
from glowplug.types.errors import ReplicaFailed, SnapshotInvalid
from glowplug.types.replica import Stage
from glowplug.types.spec import HttpCall, ServerSpec

WARMUP_TIMEOUT_S = 300.0
SLOWEST_RECORDED_S = 2.0
"""An answer that took longer is no canary unless declared: every restored copy would have to give it."""
_CLOCK_TICK_S = 1.1
"""An answer that holds a time in seconds differs after this long."""
_REPEATS = 20
_REPEATING_S = 1.0
"""How often, and for how long at most, an answer must come again: a slow one only once."""


@dataclass(frozen=True)
class Prepared:
    """What a restored copy must answer, and where its processes run the hooks that they registered."""

    canary: list[CanaryAnswer]
    hook_ports: list[int]


async def prepare(replica: Replica) -> Prepared:
    """Make a ready replica fit to be frozen; no connection is left open.

    Raises ReplicaFailed, DeadlineExceeded, or SnapshotInvalid for a declared canary that is not repeatable.
    """
    server, container = replica.request.server, replica.container
    talk = ReplicaTalk(container.endpoint)
    try:
        answers = await _Recorder(replica.id, talk, server).record()
        ports = await find_hook_ports(container.endpoint)
        if server.snapshot.weights == "stream" and not ports:
            raise SnapshotInvalid(
                "The server is to stream its weights, "
                "but no process of it has loaded any that can be left out.",
                remedy="Load them with glowplug.weights.load_into, or leave weights= out of gp.Snapshot.",
                replica_id=replica.id,
            )
        if server.code is not None:
            call = HttpCall(method="POST", path="/.glowplug/before_snapshot", json_body={})
            await _succeed(talk, replica.id, "before_snapshot", call, WARMUP_TIMEOUT_S)
        if server.snapshot.before_snapshot is not None:
            await run_hook(server.snapshot.before_snapshot, container, talk)
        await run_registered(replica.id, container.endpoint, ports, "before_snapshot")
        return Prepared(answers, ports)
    finally:
        await talk.close()


@dataclass(frozen=True)
class _Recorder:
    """Warms one replica up and records its canaries."""

    replica_id: str
    talk: ReplicaTalk
    server: ServerSpec

    async def record(self) -> list[CanaryAnswer]:
        snapshot = self.server.snapshot
        warm = [await self._first("warm-up", call, WARMUP_TIMEOUT_S) for call in snapshot.warmup]
        if snapshot.canary:
            return [await self._declared(call) for call in snapshot.canary]
        # A captured replica holds no secrets, a copy does: answers may depend on them.
        candidates = [] if self.server.secrets else warm
        return await self._repeatable(candidates) or await self._repeatable(
            [await self._first("ready", self.server.ready, CANARY_TIMEOUT_S)]
        )

    async def _first(self, what: str, call: HttpCall, timeout_s: float) -> CanaryAnswer:
        answer = await _succeed(self.talk, self.replica_id, what, call, timeout_s)
        return canary.record(call, answer.status, answer.headers, answer.body)

    async def _declared(self, call: HttpCall) -> CanaryAnswer:
        answer = await self._first("canary", call, CANARY_TIMEOUT_S)
        difference = await self._asked_again(answer, CANARY_TIMEOUT_S)
        if difference is not None:
            raise SnapshotInvalid(
                f"The canary {call.method} {call.path} is not repeatable: asked again, {difference}.",
                remedy="Use one with one right answer (temperature 0), or list what may differ in ignore=.",
                replica_id=self.replica_id,
            )
        return answer

    async def _repeatable(self, answers: list[CanaryAnswer]) -> list[CanaryAnswer]:
        """Those of ``answers`` that come again, and soon enough."""
        if not answers:
            return []
        await asyncio.sleep(_CLOCK_TICK_S)
        return [answer for answer in answers if await self._comes_again_soon(answer)]

    async def _comes_again_soon(self, answer: CanaryAnswer) -> bool:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        difference = await self._asked_again(answer, WARMUP_TIMEOUT_S)
        return difference is None and loop.time() - begun <= SLOWEST_RECORDED_S

    async def _asked_again(self, answer: CanaryAnswer, timeout_s: float) -> str | None:
        """What differs when the request is repeated, ``_REPEATS`` times or until ``_REPEATING_S`` passed."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(_REPEATS):
            again = await self.talk.call("canary", answer.request, timeout_s)
            difference = canary.compare(answer, again.status, again.body)
            if difference is not None or loop.time() - begun >= _REPEATING_S:
                return difference
        return None


async def _succeed(talk: ReplicaTalk, replica_id: str, what: str, call: HttpCall, timeout_s: float) -> Answer:
    """Make a call that must be answered with 2xx. Raises ReplicaFailed or DeadlineExceeded."""
    answer = await talk.call(what, call, timeout_s)
    if not answer.is_success:
        raise ReplicaFailed(
            f"The {what} call {call.method} {call.path} was answered with {answer.status}: "
            f"{answer.text(300)}",
            remedy="Fix the call in Snapshot(...), or the server.",
            replica_id=replica_id,
            stage=Stage.FIRST_ANSWER.value,
        )
    return answer
