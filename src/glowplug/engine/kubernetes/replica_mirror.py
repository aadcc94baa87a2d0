"""Replica objects: what ``glowplug ps`` shows, for ``kubectl get``. A copy; nothing is decided by it.

Writes are bounded by a budget: what was made, ended or changed its state comes first, how much memory it
takes at the moment last, and not more than twice a minute. What a round has no budget for is left for the
next one. A replica that is missing once is not taken for gone: a node that does not answer is missing from
the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from glowplug.engine.kubernetes.conditions import timestamp
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.names import API_VERSION, APP_LABEL, REPLICAS, SERVER_LABEL
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.engine.kubernetes.objects import ReplicaObject, ReplicaStatusObject
from glowplug.observe.replica_words import replica_words
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, NotFound
from glowplug.types.replica import ReplicaState, ReplicaView

log = logging.getLogger(__name__)

WRITES_PER_S = 20.0
BURST_WRITES = 200
MEMORY_EVERY_S = 30.0
GONE_AFTER_S = 5.0
RELOAD_EVERY_S = 300.0
_ERROR_CHARACTERS = 512
_OFTEN_CHANGED = ("memory", "share", "device")


class WriteBudget:
    """A token bucket."""

    def __init__(self, clock: Clock, *, per_s: float = WRITES_PER_S, burst: int = BURST_WRITES) -> None:
        self._clock = clock
        self._per_s = per_s
        self._burst = burst
        self._left = float(burst)
        self._at_s = clock.monotonic()

    def take(self, count: int) -> bool:
        """Whether so many writes may be made now."""
        now_s = self._clock.monotonic()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < count:
            return False
        self._left -= count
        return True


@dataclass
class _Mirrored:
    """One object as we have written it. ``status`` is None where only its first half was written."""

    spec: ReplicaObject
    status: ReplicaStatusObject | None
    written_at_s: float
    missing_since_s: float | None = None


@dataclass(frozen=True)
class _Change:
    """One object to write: ``rank`` says what comes first, ``writes`` what it costs."""

    rank: int
    writes: int
    name: str
    view: ReplicaView | None = field(repr=False)


class ReplicaMirror:
    """Owned by one thread."""

    def __init__(
        self,
        api: ObjectApi,
        namespace: str,
        clock: Clock,
        counters: OperatorCounters,
        budget: WriteBudget | None = None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._clock = clock
        self._counters = counters
        self._budget = budget or WriteBudget(clock)
        self._known: dict[str, _Mirrored] | None = None
        self._loaded_at_s = 0.0

    def follow(self, replicas: Sequence[ReplicaView]) -> None:
        """Bring the objects closer to this list. Raises a GlowplugError; then look at them anew."""
        known = self._load()
        shown = {view.id: view for view in replicas if view.state is not ReplicaState.STOPPED}
        changes = sorted(self._changes(known, shown), key=lambda change: (change.rank, change.name))
        for done, change in enumerate(changes):
            if not self._budget.take(change.writes):
                self._counters.delayed_writes.inc(len(changes) - done)
                return
            self._carry_out(known, change)

    def forget(self) -> None:
        """Something went wrong: what is there has to be listed again."""
        self._known = None

    # -- inside ------------------------------------------------------------------------------------

    def _load(self) -> dict[str, _Mirrored]:
        now_s = self._clock.monotonic()
        if self._known is None or now_s - self._loaded_at_s >= RELOAD_EVERY_S:
            self._loaded_at_s = now_s
            objects = self._api.list(REPLICAS, self._namespace)
            self._known = {one["metadata"]["name"]: _mirrored(one) for one in objects}
        return self._known

    def _changes(self, known: dict[str, _Mirrored], shown: dict[str, ReplicaView]) -> Iterator[_Change]:
        now_s = self._clock.monotonic()
        for name, mirrored in known.items():
            if name in shown:
                mirrored.missing_since_s = None
                continue
            if mirrored.missing_since_s is None:
                mirrored.missing_since_s = now_s
            if now_s - mirrored.missing_since_s >= GONE_AFTER_S:
                yield _Change(0, 1, name, None)
        for name, view in shown.items():
            there = known.get(name)
            if there is None or there.spec != _spec(view):
                yield _Change(1, 2, name, view)
            elif there.status is None or _settled(there.status) != _settled(_status(view)):
                yield _Change(1, 1, name, view)
            elif there.status != _status(view) and now_s - there.written_at_s >= MEMORY_EVERY_S:
                yield _Change(2, 1, name, view)

    def _carry_out(self, known: dict[str, _Mirrored], change: _Change) -> None:
        name, view = change.name, change.view
        if view is None:
            self._api.delete(REPLICAS, name, self._namespace)
            del known[name]
            return
        try:
            if name not in known:
                self._api.create(REPLICAS, _object(view, self._namespace), self._namespace)
            elif known[name].spec != _spec(view):
                self._api.patch(REPLICAS, name, {"spec": _spec(view).patch()}, self._namespace)
            known[name] = _Mirrored(_spec(view), None, self._clock.monotonic())
            said = {"status": _status(view).patch()}
            self._api.patch(REPLICAS, name, said, self._namespace, subresource="status")
            known[name].status = _status(view)
        except (NotFound, Conflict) as error:
            # Somebody else made or removed it: what is there is listed again by the next round.
            log.info("the object of replica %s is not as it was: %s", name, error)
            self.forget()


def _spec(view: ReplicaView) -> ReplicaObject:
    return ReplicaObject(
        server=replica_words(view).server,
        runtime=view.runtime,
        node=view.node or "",
        deployment_id=view.deployment_id,
        created_at=timestamp(view.created_at),
    )


def _status(view: ReplicaView) -> ReplicaStatusObject:
    words = replica_words(view)
    return ReplicaStatusObject(
        state=words.state,
        path=view.path.value,
        start=words.start,
        memory=words.memory,
        share=words.share,
        device=words.device,
        error=words.error[:_ERROR_CHARACTERS],
    )


def _settled(status: ReplicaStatusObject) -> ReplicaStatusObject:
    """Without what changes all the time."""
    return status.model_copy(update=dict.fromkeys(_OFTEN_CHANGED, ""))


def _object(view: ReplicaView, namespace: str) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "Replica",
        "metadata": {
            "name": view.id,
            "namespace": namespace,
            "labels": {APP_LABEL: view.app, SERVER_LABEL: view.server},
        },
        "spec": {name: value for name, value in _spec(view).patch().items() if value is not None},
    }


def _mirrored(body: Object) -> _Mirrored:
    """What lies in the API server; whatever of it cannot be read is written anew."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    missing = {name: "" for name in ("server", "runtime", "deploymentId", "createdAt") if name not in spec}
    is_whole = {"state", "path"} <= status.keys()
    return _Mirrored(
        spec=ReplicaObject.model_validate({**spec, **missing}),
        status=ReplicaStatusObject.model_validate(status) if is_whole else None,
        written_at_s=float("-inf"),
    )
