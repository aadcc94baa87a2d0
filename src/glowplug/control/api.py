"""The control API (``docs/architecture.md``): deployments, status, replicas, cold starts, metrics.

A thin skin: every decision is made in the rooms behind it. Errors are typed JSON whatever they come from.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from glowplug.control.access import is_open
from glowplug.control.answers import error_answer
from glowplug.control.api_cluster import cluster_routes
from glowplug.control.api_nodes import node_routes
from glowplug.control.messages import (
    DeployEvent,
    DeploymentView,
    DeployRequest,
    Health,
    StatusView,
    StopResult,
)
from glowplug.control.plane import ControlPlane
from glowplug.control.standby import health_of, health_status
from glowplug.control.streams import NDJSON, Stream, ndjson
from glowplug.observe.limited_log import LimitedLog
from glowplug.types.clock import Clock
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound
from glowplug.types.usage import UsageSpan

log = logging.getLogger(__name__)

_MAX_FIELDS_SHOWN = 20
_MAX_FIELD_CHARACTERS = 200


def make_api(plane: ControlPlane, clock: Clock) -> FastAPI:
    """The FastAPI application over this control plane. It neither starts nor stops it."""

    async def may_act(connection: HTTPConnection) -> None:
        # Reading is free; what changes something is the leader's only.
        if connection.scope.get("method", "GET") != "GET":
            plane.leadership.check()

    app = FastAPI(
        title="Glowplug control API",
        description="Deploy apps, see what runs, read cold starts. Other paths on this port are the router.",
        version="1",
        redoc_url=None,
        dependencies=[Depends(may_act)],
    )
    _handle_errors(app, plane, LimitedLog(log, clock))
    _add_status(app, plane)
    _add_apps(app, plane)
    _add_cold_starts(app, plane, clock)
    _add_usage(app, plane, clock)
    app.include_router(cluster_routes(plane), prefix="/api/v1")
    app.include_router(node_routes(plane), prefix="/api/v1")
    return app


def _add_status(app: FastAPI, plane: ControlPlane) -> None:
    @app.get("/healthz")
    async def healthz(response: Response, leader: str | None = None) -> Health:
        """The process answers. With `leader`, 503 from one that does not serve requests."""
        health = health_of(plane.leadership.view())
        response.status_code = health_status(health, is_leader_wanted=leader is not None)
        return health

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        body, content_type = plane.metrics.render()
        return Response(body, media_type=content_type)

    @app.get("/api/v1/status")
    async def status(heat: bool = False) -> StatusView:
        """Version, uptime, nodes and apps; with ``heat`` also what each server's next start would find."""
        return await plane.status(with_heat=heat)


def _add_apps(app: FastAPI, plane: ControlPlane) -> None:
    @app.post(
        "/api/v1/deployments",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": DeployEvent, "description": "NDJSON of deploy events"}},
    )
    async def deploy(request: DeployRequest) -> Response:
        """Deploy an app. One line per step; the last one holds the deployment or the error."""
        plane.deployer.check(request.app, request.secrets)
        return Stream(ndjson(plane.deployer.deploy(request.app, request.secrets)), NDJSON)

    @app.get("/api/v1/deployments")
    async def deployments(app: str | None = None) -> list[DeploymentView]:
        """Versions, newest first; one per app is active."""
        return await plane.deployer.list(app)

    @app.post("/api/v1/apps/{name}/rollback")
    async def rollback(name: str, version: Annotated[int | None, Query(ge=1)] = None) -> DeploymentView:
        """Make an earlier version active: the given one, or the one before."""
        return await plane.deployer.rollback(name, version)

    @app.post("/api/v1/apps/{name}/stop")
    async def stop(
        name: str, server: str | None = None, remove: bool = False, wait: bool = False
    ) -> StopResult:
        """Stop replicas; the next request wakes them. With `remove`, undeploy the app."""
        if remove and server is not None:
            raise InvalidInput(
                "A single server cannot be removed.", remedy="Deploy the app without it, or leave server out."
            )
        replicas = await plane.stop(name, server, remove=remove, wait=wait)
        return StopResult(app=name, replicas=replicas, is_removed=remove)


def _add_cold_starts(app: FastAPI, plane: ControlPlane, clock: Clock) -> None:
    @app.get("/api/v1/coldstarts")
    async def cold_starts(
        app: str | None = None,
        server: str | None = None,
        since_s: Annotated[float | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> list[ColdStartRecord]:
        """Cold-start records, newest first; `since_s` counts back from now."""
        await plane.cold_starts.saved()
        since = None if since_s is None else clock.wall() - since_s
        return await plane.store.cold_starts(app=app, server=server, since=since, limit=limit)


def _add_usage(app: FastAPI, plane: ControlPlane, clock: Clock) -> None:
    @app.get("/api/v1/usage")
    async def usage(
        app: str | None = None, since_s: Annotated[float | None, Query(ge=0)] = None
    ) -> list[UsageSpan]:
        """What replicas did, in spans of five minutes, oldest first; `since_s` counts back from now."""
        await plane.usage.save()
        since = None if since_s is None else clock.wall() - since_s
        return await plane.store.usage(app=app, since=since)


def _handle_errors(app: FastAPI, plane: ControlPlane, refusals: LimitedLog) -> None:
    @app.exception_handler(GlowplugError)
    async def ours(_request: Request, error: GlowplugError) -> Response:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        fields = [_field(problem) for problem in error.errors()[:_MAX_FIELDS_SHOWN]]
        first = fields[0]
        refusals.warning("refused %s %r: %s", request.method, request.url.path[:200], first)
        if is_open(request.scope):
            plane.refused_joins.inc()
        return _answer(
            InvalidInput(
                f"The request is not valid: {first['path']}: {first['message']}.",
                remedy="Correct the named fields and send it again.",
                fields=fields,
            )
        )

    @app.exception_handler(HTTPException)
    async def framework(_request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _answer(NotFound("There is nothing at this path.", remedy="See /docs."))
        body = InvalidInput(str(error.detail), remedy="See /docs.").to_dict()
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def bug(_request: Request, error: Exception) -> Response:
        log.error("the control API broke", exc_info=error)
        return _answer(GlowplugError("The control plane failed.", remedy="See logs/control.log."))


def _answer(error: GlowplugError) -> Response:
    status, headers, body = error_answer(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


def _field(problem: dict[str, Any]) -> dict[str, str]:
    path = ".".join(str(part) for part in problem["loc"] if part != "body")
    # Of a field that nobody knows the name is the caller's, as long as he likes.
    return {
        "path": path[:_MAX_FIELD_CHARACTERS] or "body",
        "message": str(problem["msg"])[:_MAX_FIELD_CHARACTERS],
    }
