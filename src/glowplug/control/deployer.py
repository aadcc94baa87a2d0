"""Deploying, rolling back and removing apps: the only writer of deployments.

One deployment of an app at a time: a second one is refused while the first builds, so that the first is never
overtaken by its own later half. Nothing is stored before every image is there; storing and activating is one
step, which is finished once it has begun. A deployment cancelled before that (its caller hung up) leaves the
app as it was.

Images are made on the node of this machine, else on the first that is ready, which gives them their ids;
other nodes make them from there on (:mod:`glowplug.control.image_care`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from glowplug.control.fleet import Fleet
from glowplug.control.messages import DeployEvent, DeploymentView
from glowplug.control.node_link import NodeLink
from glowplug.control.server_version import ServerVersion
from glowplug.control.store import Deployment, Store
from glowplug.types.clock import Clock
from glowplug.types.cluster import NodeState
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, Unavailable
from glowplug.types.ids import check_name
from glowplug.types.replica import ErrorInfo
from glowplug.types.secret_values import check_secrets
from glowplug.types.spec import AppSpec, ServerSpec

log = logging.getLogger(__name__)

Events = AsyncGenerator[DeployEvent, None]


class Deployer:
    """Changes what is deployed, in the store and then in the fleet."""

    def __init__(self, store: Store, fleet: Fleet, links: Sequence[NodeLink], clock: Clock) -> None:
        self._store = store
        self._fleet = fleet
        self._links = links
        self._clock = clock
        self._busy: set[str] = set()

    async def load(self) -> None:
        """Route to what the database says is active; called once, before anything else."""
        for deployment in await self._store.active_deployments():
            await self._activate(deployment)

    def check(self, spec: AppSpec, secrets: dict[str, str]) -> None:
        """Refuse at once what cannot be deployed. Raises InvalidInput or Conflict."""
        check_name(spec.name, "app")
        for server in spec.servers:
            missing = sorted(set(server.secrets) - secrets.keys())
            if missing:
                raise InvalidInput(
                    f"Server {server.name!r} asks for secrets that were not given: {', '.join(missing)}.",
                    remedy="Send their values with the deployment.",
                    server=server.name,
                    missing=missing,
                )
            check_secrets({name: secrets[name] for name in server.secrets})
        if spec.name in self._busy:
            raise self._conflict(spec.name)

    async def deploy(self, spec: AppSpec, secrets: dict[str, str]) -> Events:
        """Build, store, activate. The last event holds ``deployment`` or ``error``."""
        try:
            self.check(spec, secrets)
            with self._alone(spec.name):
                images: dict[str, str] = {}
                async with aclosing(self._build_all(spec, images)) as events:
                    async for event in events:
                        yield event
                deployment = await self._finished(self._add(spec, images, secrets))
                log.info("deployed %s", deployment.id)
        except GlowplugError as error:
            log.warning("deploying %s failed: %s", spec.name, error)
            yield DeployEvent(text="failed", error=ErrorInfo.of(error))
            return
        yield DeployEvent(text=f"{deployment.id} is active", fraction=1.0, deployment=self.view(deployment))

    async def rollback(self, app: str, version: int | None) -> DeploymentView:
        """Make an earlier version active. Raises NotFound or Conflict."""
        with self._alone(app):
            deployment = await self._store.activate(app, version)
            await self._activate(deployment)
        log.info("rolled %s back to version %d", app, deployment.version)
        return self.view(deployment)

    async def remove(self, app: str) -> None:
        """Undeploy. Raises NotFound or Conflict."""
        with self._alone(app):
            await self._store.deactivate(app)
            self._fleet.remove(app)
        log.info("removed %s", app)

    async def list(self, app: str | None) -> list[DeploymentView]:
        """Versions, newest first."""
        return [self.view(deployment) for deployment in await self._store.deployments(app)]

    def view(self, deployment: Deployment) -> DeploymentView:
        """The deployment, with the reason why it does not start, if that is so."""
        servers = [server.name for server in deployment.spec.servers]
        targets = self._fleet.apps.get(deployment.app, {}) if deployment.active else {}
        errors = [target.history.error for target in targets.values() if target.history.error is not None]
        return DeploymentView(
            id=deployment.id,
            app=deployment.app,
            version=deployment.version,
            active=deployment.active,
            created_at=deployment.created_at,
            servers=servers,
            urls={name: f"/{deployment.app}/{name}" for name in servers},
            spec_digest=deployment.spec_digest,
            error=errors[0] if errors else None,
        )

    # -- inside ------------------------------------------------------------------------------------

    async def _add(self, spec: AppSpec, images: dict[str, str], secrets: dict[str, str]) -> Deployment:
        deployment = await self._store.add_deployment(spec, images, secrets, self._clock.wall())
        await self._activate(deployment)
        return deployment

    async def _finished(self, step: Coroutine[Any, Any, Deployment]) -> Deployment:
        """Its result. A caller who hangs up meanwhile must not leave the store ahead of the fleet."""
        task = asyncio.create_task(step)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("deploying failed after its caller had left: %s", error)
            raise

    async def _activate(self, deployment: Deployment) -> None:
        secrets = await self._store.secrets(deployment.id)
        versions = [
            ServerVersion(
                deployment_id=deployment.id,
                spec=server,
                image_id=deployment.images[server.name],
                secrets={name: secrets[name] for name in server.secrets if name in secrets},
            )
            for server in deployment.spec.servers
        ]
        self._fleet.activate(deployment.app, versions)

    async def _build_all(self, spec: AppSpec, images: dict[str, str]) -> Events:
        """Make every image ready here, one build per different image; fills ``images``."""
        built: dict[str, str] = {}
        for done, server in enumerate(spec.servers):
            key = server.image.digest()
            if key not in built:
                yield DeployEvent(text=f"image of {server.name}", fraction=done / len(spec.servers))
                async with aclosing(self._build(server, built, key, done, len(spec.servers))) as events:
                    async for event in events:
                        yield event
            images[server.name] = built[key]

    async def _build(
        self, server: ServerSpec, built: dict[str, str], key: str, done: int, jobs: int
    ) -> Events:
        node = self._builder()
        async with aclosing(node.client.build_image(server.image)) as events:
            async for event in events:
                if event.error is not None:
                    raise GlowplugError.from_dict(event.error.model_dump())
                if event.image is not None:
                    built[key] = event.image.id
                    node.ready_images.add(event.image.id)
                fraction = None if event.fraction is None else (done + event.fraction) / jobs
                yield DeployEvent(text=event.text, fraction=fraction)
        if key not in built:
            raise Unavailable(
                f"The node's build of server {server.name!r}'s image ended without a result.",
                remedy="See logs/agent.log in the state directory, and deploy again.",
            )

    def _builder(self) -> NodeLink:
        """Our own node, ready or not; where there is none, the first that is."""
        for link in self._links:
            if link.is_own or link.state is NodeState.READY:
                return link
        raise Unavailable(
            "No node is ready to make the images.",
            remedy="See `glowplug cluster status`, and deploy again.",
            retry_after_s=2,
        )

    @contextmanager
    def _alone(self, app: str) -> Iterator[None]:
        if app in self._busy:
            raise self._conflict(app)
        self._busy.add(app)
        try:
            yield
        finally:
            self._busy.discard(app)

    def _conflict(self, app: str) -> Conflict:
        return Conflict(
            f"App {app!r} is being deployed by somebody else right now.",
            remedy="Wait until that is done, then deploy again.",
            app=app,
        )
