"""Apps: deployed as their objects say, undeployed before they go, and told about as long as they are there.

Everything is compared with what the control plane has: a deployment is made when the active version is not
what the object says, or there is none. So an operator that was killed in the middle, or a control plane that
lost its database, ends where it should. What somebody does by hand in between (a rollback) is not undone: it
shows as ``Diverged`` until the object changes. One app's object is worked on by one thread at a time.
"""

from __future__ import annotations

import base64
import binascii
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from glowplug.control.messages import AppStatus, DeploymentView
from glowplug.engine.kubernetes.app_object import FoundApp, write_status
from glowplug.engine.kubernetes.conditions import (
    DEPLOYED,
    PROGRESSING,
    READY,
    Statement,
    conditions,
    seconds,
)
from glowplug.engine.kubernetes.control_port import Control
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.names import APPS, REDEPLOY_ANNOTATION, SECRETS
from glowplug.engine.kubernetes.object_api import ObjectApi
from glowplug.engine.kubernetes.objects import AppObject, AppStatusObject
from glowplug.types.clock import Clock
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GlowplugError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
)
from glowplug.types.spec import AppSpec

log = logging.getLogger(__name__)

UNDEPLOY_DEADLINE_S = 600.0
"""How long a deleted App waits for a control plane that does not answer: a removed Glowplug must not keep a
namespace from being deleted."""
_RETRY_FIRST_S = 2.0
_RETRY_MAX_S = 300.0
_SOON_MAX_S = 30.0
_SOON = (Unavailable, DeadlineExceeded, Overloaded, Conflict)
"""What passes without anybody's doing: somebody does not answer, or is at it already."""
_FINAL = (InvalidInput,)
"""Refusals that only another object changes."""


class Retry(Exception):
    """Not done yet: again in ``after_s``. Whoever looks at the object sees why."""

    def __init__(self, why: GlowplugError, after_s: float) -> None:
        super().__init__(str(why))
        self.after_s = after_s


class AppKeeper:
    """Between the API server and the control plane. Its methods may be called from several threads."""

    def __init__(self, api: ObjectApi, control: Control, clock: Clock, counters: OperatorCounters) -> None:
        self._api = api
        self._control = control
        self._clock = clock
        self._counters = counters
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    # -- what an object wants --------------------------------------------------------------------------------

    def keep(self, body: Mapping[str, Any], *, is_changed: bool = True, attempt: int = 0) -> None:
        """Deploy what the object says, unless that is so. Raises Retry; a refusal is told in its status.

        ``is_changed`` is False when it is only seen again, by an operator that was started.
        """
        app = self._fresh(body)
        if app.deleted_at:
            return
        with self._alone(app.name):
            try:
                self._keep(app, is_changed=is_changed)
            except GlowplugError as error:
                longest_s = _SOON_MAX_S if isinstance(error, _SOON) else _RETRY_MAX_S
                wait_s = min(longest_s, _RETRY_FIRST_S * 2.0 ** min(attempt, 30))
                if app.is_settled and not is_changed and not isinstance(error, _FINAL):
                    # Nothing was asked for. Said to be undone, it would be done again over a rollback.
                    raise Retry(error, wait_s) from error
                self._counters.deployments.labels("refused" if isinstance(error, _FINAL) else "retried").inc()
                log.warning("app %s is not deployed: %s", app.name, error)
                self._tell_refused(app, error)
                if not isinstance(error, _FINAL):
                    raise Retry(error, wait_s) from error

    def let_go(self, body: Mapping[str, Any], *, attempt: int = 0) -> None:
        """Undeploy it: its object is being deleted. Raises Retry, but not for ever."""
        app = self._fresh(body)
        if app.status.deployment_id is None:
            return  # never deployed through this object: what has its name is somebody else's
        with self._alone(app.name):
            try:
                self._control.stop_app(app.name, None, remove=True)
            except NotFound:
                pass
            except GlowplugError as error:
                self._not_undeployed(app, error, attempt)
            log.info("app %s is no longer deployed", app.name)

    def _fresh(self, body: Mapping[str, Any]) -> FoundApp:
        """As it is now: what we are told of may be older than what we have said of it ourselves."""
        app = FoundApp.of(body)
        try:
            return FoundApp.of(self._api.get(APPS, app.name, app.namespace))
        except NotFound:
            return app

    def _not_undeployed(self, app: FoundApp, error: GlowplugError, attempt: int) -> None:
        waited_s = self._clock.wall() - seconds(app.deleted_at) if app.deleted_at else 0.0
        if waited_s < UNDEPLOY_DEADLINE_S:
            raise Retry(error, min(_SOON_MAX_S, _RETRY_FIRST_S * 2.0 ** min(attempt, 30))) from error
        self._counters.abandoned.inc()
        log.error(
            "app %s goes without being undeployed: for %.0f s the control plane could not be told: %s",
            app.name, waited_s, error,
        )  # fmt: skip

    def _keep(self, app: FoundApp, *, is_changed: bool) -> None:
        written, spec = app.wanted()
        secrets, secret_version = self._secrets(app, written, spec)
        active = self._active(app.name)
        if active is not None and app.is_settled and not is_changed:
            self._tell_running(app, active, app.status.replicas)
            return
        is_there = active is not None and active.spec_digest == spec.digest()
        if not is_there or secret_version != app.status.secret_version:
            self._tell_progress(app, active)
            active = self._deploy(spec, secrets)
            self._counters.deployments.labels("deployed").inc()
            log.info("app %s: %s is active", app.name, active.id)
        assert active is not None  # noqa: S101 - it is what was deployed, or what was there
        status = app.status.model_copy(
            update={
                "observed_generation": app.generation,
                "deployment_id": active.id,
                "version": active.version,
                "spec_digest": spec.digest(),
                "secret_version": secret_version,
                "urls": active.urls,
            }
        )
        self._tell(app, status, _ready(status, active), Statement("False", DEPLOYED))

    def _active(self, name: str) -> DeploymentView | None:
        return next((one for one in self._control.deployments(name) if one.active), None)

    def _deploy(self, spec: AppSpec, secrets: dict[str, str]) -> DeploymentView:
        with closing(self._control.deploy(spec.model_dump(mode="json"), secrets)) as events:
            for event in events:
                if event.error is not None:
                    raise GlowplugError.from_dict(event.error.model_dump())
                if event.deployment is not None:
                    return event.deployment
        raise Unavailable(
            "The control plane stopped reporting before the deployment was finished.",
            remedy="It is tried again.",
        )

    def _secrets(self, app: FoundApp, written: AppObject, spec: AppSpec) -> tuple[dict[str, str], str | None]:
        """The values that its servers ask for, and which version of the Secret they are."""
        asked = {name for server in spec.servers for name in server.secrets}
        if written.secrets_from is None:
            return {}, None
        try:
            secret = self._api.get(SECRETS, written.secrets_from, app.namespace)
        except NotFound as error:
            raise NotFound(
                f"There is no Secret {written.secrets_from!r} in namespace {app.namespace!r}.",
                remedy="Make it; it is looked for again.",
            ) from error
        try:
            values = {
                name: base64.b64decode(value).decode()
                for name, value in (secret.get("data") or {}).items()
                if name in asked
            }
        except (UnicodeDecodeError, binascii.Error) as error:
            raise InvalidInput(
                f"Secret {written.secrets_from!r} holds a value that is no text.",
                remedy="Secrets become environment variables: they are UTF-8.",
            ) from error
        if missing := sorted(asked - values.keys()):
            raise NotFound(
                f"Secret {written.secrets_from!r} has no {', '.join(missing)}.",
                remedy="Add what is missing; it is looked for again.",
            )
        return values, secret["metadata"].get("resourceVersion")

    # -- what is said about it -------------------------------------------------------------------------------

    def refresh(
        self,
        bodies: list[dict[str, Any]],
        deployments: list[DeploymentView],
        apps: list[AppStatus],
    ) -> None:
        """Say how deployed Apps are doing now; have those deployed again that the control plane lost."""
        active = {one.app: one for one in deployments if one.active}
        running = {one.name: one for one in apps}
        for app in self._settled(bodies):
            now = active.get(app.name)
            if now is None:
                log.warning("app %s is not deployed any more: it is deployed again", app.name)
                mark = {"metadata": {"annotations": {REDEPLOY_ANNOTATION: str(int(self._clock.wall()))}}}
                self._api.patch(APPS, app.name, mark, app.namespace)
                continue
            self._tell_running(app, now, _replicas(running.get(app.name)))

    def doubt(self, bodies: list[dict[str, Any]], why: str) -> None:
        """Nobody can tell: the control plane does not answer."""
        for app in self._settled(bodies):
            doubt = Statement("Unknown", "ControlPlaneUnavailable", why)
            self._tell(app, app.status, doubt, is_bystander=True)

    def _settled(self, bodies: list[dict[str, Any]]) -> Iterator[FoundApp]:
        """Those whose last generation was deployed, and that nobody works on."""
        for app in map(FoundApp.of, bodies):
            with self._lock:
                is_busy = app.name in self._busy
            if app.is_settled and not is_busy:
                yield app

    def _tell_running(self, app: FoundApp, active: DeploymentView, replicas: str) -> None:
        status = app.status.model_copy(update={"replicas": replicas})
        if active.spec_digest == status.spec_digest:
            status.deployment_id, status.version = active.id, active.version
        self._tell(app, status, _ready(status, active), is_bystander=True)

    def _tell_progress(self, app: FoundApp, active: DeploymentView | None) -> None:
        serving = f"Version {active.version} serves meanwhile." if active else ""
        status = app.status.model_copy(update={"observed_generation": app.generation})
        statement = Statement("True", "Deploying", "Its images are made ready.")
        self._tell(app, status, Statement("False", "Deploying", serving), statement)

    def _tell_refused(self, app: FoundApp, error: GlowplugError) -> None:
        refusal = Statement.of_error(error)
        status = app.status.model_copy(update={"observed_generation": app.generation})
        is_over = isinstance(error, _FINAL)
        progress = Statement("False" if is_over else "True", "Refused" if is_over else "Retrying", str(error))
        self._tell(app, status, refusal, progress)

    def _tell(
        self,
        app: FoundApp,
        status: AppStatusObject,
        ready: Statement,
        progress: Statement | None = None,
        *,
        is_bystander: bool = False,
    ) -> None:
        statements = {READY: ready, **({PROGRESSING: progress} if progress else {})}
        told = conditions(status.conditions, statements, generation=app.generation, wall_s=self._clock.wall())
        status = status.model_copy(update={"conditions": told})
        write_status(self._api, app, status, is_bystander=is_bystander)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with self._lock:
            if name in self._busy:
                raise Retry(Conflict(f"App {name} is being worked on."), _RETRY_FIRST_S)
            self._busy.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)


def _ready(status: AppStatusObject, active: DeploymentView) -> Statement:
    if active.spec_digest != status.spec_digest:
        return Statement(
            "False",
            "Diverged",
            f"Version {active.version} was made active by hand, in the place of {status.deployment_id}. "
            "A change of this object deploys it again.",
        )
    if active.error is not None:
        return Statement("False", "StartFailed", f"{active.error.message} {active.error.remedy}".strip())
    return Statement("True", DEPLOYED)


def _replicas(app: AppStatus | None) -> str:
    """``1 ready, 2 parked``; ``zero`` where there is none."""
    if app is None:
        return ""
    counts = {
        name: sum(getattr(server, name) for server in app.servers) for name in ("ready", "starting", "parked")
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "zero"
