"""The operator: kopf tells of Apps, and of when to try again; what is done about them is ``app_keeper.py``.

kopf keeps what it has to remember in annotations (``kopf_memory.py``), so an operator that was killed is
succeeded by one that knows what is left to do, and does it at once. Beside it one thread makes the rounds,
and sees to it that no App is forgotten (``attention.py``). The loss of the API server ends nothing: both try
again for as long as it takes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kopf

from glowplug.engine.kubernetes.access import Access
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.app_keeper import AppKeeper, Retry
from glowplug.engine.kubernetes.attention import Attention
from glowplug.engine.kubernetes.control_port import Control
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.engine import KubernetesEngine
from glowplug.engine.kubernetes.handover import Handover
from glowplug.engine.kubernetes.join_secret import JoinSecret
from glowplug.engine.kubernetes.kopf_memory import AttemptStorage, DigestStorage
from glowplug.engine.kubernetes.names import APPS, FINALIZER, GROUP, VERSION
from glowplug.engine.kubernetes.node_keeper import NodeKeeper
from glowplug.engine.kubernetes.object_api import ObjectApi
from glowplug.engine.kubernetes.replica_mirror import ReplicaMirror
from glowplug.engine.kubernetes.rounds import Job, Rounds
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, SystemUnfit

log = logging.getLogger(__name__)

_WORKERS = 16
_WATCH_S = 300  # whole: the API server reads no fractions
_SILENCE_S = 30.0
_UNSAID_S = 5.0
_AFTER_A_BUG_S = 15.0
_PAUSES_S = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 15.0)
"""In which kopf lets an App alone after an error of its own with it; the last one again and again."""
DOUBT_AFTER_S = 15.0
"""A control plane that is succeeded answers within five seconds: nothing is said about that."""


@dataclass(frozen=True)
class OperatorSettings:
    """``join_secret`` None: machines are given their tokens by somebody else. ``image``: of claims."""

    namespace: str
    image: str = ""
    join_secret: str | None = None
    replicas_every_s: float = 2.0
    apps_every_s: float = 5.0
    nodes_every_s: float = 5.0
    pools_every_s: float = 10.0
    tokens_every_s: float = 60.0
    health_port: int | None = None


class Operator:
    """Everything that it consists of. :meth:`run` it, in the main thread or with a ``stop`` of one's own."""

    def __init__(self, access: Access, control: Control, clock: Clock, settings: OperatorSettings) -> None:
        self.counters = OperatorCounters()
        self._access = access
        self._settings = settings
        self._clock = clock
        self._control = control
        self._api = KubernetesApi(access, on_write=self.counters.wrote)
        self._apps = AppKeeper(self._api, control, clock, self.counters)
        self._attention = Attention(self._api, clock, self.counters)
        self._mirror = ReplicaMirror(self._api, settings.namespace, clock, self.counters)
        self._nodes = NodeKeeper(self._api, settings.namespace, control)
        self._engine = KubernetesEngine(self._api, settings.namespace, control, clock, image=settings.image)
        self._answered_at_s = clock.monotonic()
        self._stop = threading.Event()
        self._rounds = Rounds(list(self._jobs()), clock, self.counters)

    def run(self, stop: threading.Event | None = None, ready: threading.Event | None = None) -> None:
        """Until SIGTERM, or until ``stop`` is set. Raises SystemUnfit when a part has ended by a bug."""
        self._stop = stop or self._stop
        port = self._settings.health_port
        try:
            kopf.run(
                registry=self._registry(),
                namespaces=[self._settings.namespace],
                standalone=True,
                liveness_endpoint=None if port is None else f"http://0.0.0.0:{port}/healthz",
                stop_flag=self._stop,
                ready_flag=ready,
            )
        finally:
            self._rounds.stop()
            self._api.close()
        if self._rounds.bug is not None:
            raise SystemUnfit(
                f"A part of the operator broke: {self._rounds.bug!r}.", remedy="It is to be started again."
            )

    # -- the rounds ------------------------------------------------------------------------------------------

    def _jobs(self) -> Iterator[Job]:
        settings = self._settings
        yield Job("replicas", settings.replicas_every_s, self._mirror_replicas)
        yield Job("apps", settings.apps_every_s, self._refresh_apps)
        yield Job("nodes", settings.nodes_every_s, self._nodes.look)
        yield Job("pools", settings.pools_every_s, self._reconcile_pools)
        yield Job("handover", settings.nodes_every_s, Handover(self._api, settings.namespace).look)
        if settings.join_secret is not None:
            secret = JoinSecret(
                self._api, settings.namespace, settings.join_secret, self._control, self._clock
            )
            yield Job("tokens", settings.tokens_every_s, secret.renew)

    def _reconcile_pools(self) -> None:
        self._engine.reconcile()

    def _mirror_replicas(self) -> None:
        try:
            self._mirror.follow(self._control.replicas())
        except GlowplugError:
            self._mirror.forget()
            raise

    def _refresh_apps(self) -> None:
        bodies = self._api.list(APPS, self._settings.namespace)
        self._attention.look(bodies)
        try:
            deployments, status = self._control.deployments(), self._control.status()
        except GlowplugError as error:
            if self._clock.monotonic() - self._answered_at_s >= DOUBT_AFTER_S:
                self._apps.doubt(bodies, str(error))
            raise
        self._answered_at_s = self._clock.monotonic()
        self._apps.refresh(bodies, deployments, status.apps)

    # -- kopf ------------------------------------------------------------------------------------------------

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        where: Any = {"registry": registry, "group": GROUP, "version": VERSION, "plural": "apps"}

        @kopf.on.startup(registry=registry)
        def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
            _configure(settings)
            self._rounds.start()
            threading.Thread(target=self._end_with_rounds, name="operator-watch", daemon=True).start()

        @kopf.on.cleanup(registry=registry)
        def cleanup(**_: Any) -> None:
            self._rounds.stop()

        @kopf.on.login(registry=registry)
        def login(**_: Any) -> kopf.ConnectionInfo:
            return connection(self._access)

        @kopf.on.resume(**where, id="deploy")
        @kopf.on.create(**where, id="deploy")
        @kopf.on.update(**where, id="deploy")
        def deploy(body: kopf.Body, name: str, reason: str, retry: int, **_: Any) -> None:
            with self._attended(name):
                self._apps.keep(dict(body), is_changed=reason != kopf.Reason.RESUME, attempt=retry)

        @kopf.on.delete(**where, id="undeploy")
        def undeploy(body: kopf.Body, name: str, retry: int, **_: Any) -> None:
            with self._attended(name):
                self._apps.let_go(dict(body), attempt=retry)

        return registry

    @contextmanager
    def _attended(self, name: str) -> Iterator[None]:
        """Says in kopf's words when to try again."""
        try:
            with self._attention.paid_to(name):
                yield
        except (Retry, GlowplugError) as error:
            # An error of ours comes from the API server: what is to be said cannot be said.
            after_s = error.after_s if isinstance(error, Retry) else _UNSAID_S
            self._attention.again(name, after_s)
            raise kopf.TemporaryError(str(error), delay=after_s) from error
        except Exception:
            self._attention.again(name, _AFTER_A_BUG_S)
            raise

    def _end_with_rounds(self) -> None:
        self._rounds.is_over.wait()
        self._stop.set()


class Backoffs:
    """Waits between attempts to reach the API server: without end, as replicas do without it."""

    def __iter__(self) -> Iterator[float]:
        """Doubling to 15 s."""
        wait_s = 0.5
        while True:
            yield wait_s
            wait_s = min(wait_s * 2, 15.0)


def _configure(settings: kopf.OperatorSettings) -> None:
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = AttemptStorage()
    settings.persistence.diffbase_storage = DigestStorage()
    settings.posting.loggers = True
    settings.posting.level = logging.WARNING
    # The chart installs what we watch before us: nobody has to look for more, nor needs a right to.
    settings.scanning.disabled = True
    settings.execution.max_workers = _WORKERS
    settings.execution.default_backoff = _AFTER_A_BUG_S
    settings.queueing.error_delays = _PAUSES_S
    settings.watching.server_timeout = _WATCH_S
    settings.watching.client_timeout = _WATCH_S + _SILENCE_S
    settings.watching.connect_timeout = _SILENCE_S
    settings.networking.request_timeout = _SILENCE_S
    settings.networking.error_backoffs = Backoffs()


def connection(access: Access) -> kopf.ConnectionInfo:
    """The same way to the API server as ours, for kopf; asked for again when it is refused."""
    return kopf.ConnectionInfo(
        server=access.server,
        ca_data=access.authority,
        insecure=access.is_insecure,
        scheme="Bearer" if access.bearer() else None,
        token=access.bearer(),
        certificate_data=access.certificate,
        private_key_data=access.private_key,
        default_namespace=access.namespace,
    )


def forget_apps(api: ObjectApi, namespace: str) -> list[str]:
    """Let all Apps go without us: before the operator is removed for good. Returns their names.

    What is deployed stays deployed; the objects can be deleted, and nobody waits for them.
    """
    names = []
    for body in api.list(APPS, namespace):
        kept = [one for one in body["metadata"].get("finalizers") or [] if one != FINALIZER]
        name = body["metadata"]["name"]
        api.patch(APPS, name, {"metadata": {"finalizers": kept or None}}, namespace)
        names.append(name)
    return names
