"""The part of the control API about machines: who they are, how they join, what they may be used for."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query

from glowplug.control.messages import NodeStatus
from glowplug.control.plane import ControlPlane
from glowplug.types.cluster import (
    CertificateAnswer,
    EngineJoinRequest,
    JoinRequest,
    JoinTokenView,
    RenewalRequest,
    SealedAnswer,
)
from glowplug.types.errors import GlowplugError

log = logging.getLogger(__name__)

DEFAULT_TOKEN_TTL_S = 3600.0
_MAX_TOKEN_TTL_S = 7 * 86_400.0


def cluster_routes(plane: ControlPlane) -> APIRouter:
    """All routes, without their prefix."""
    routes = APIRouter()
    _add_tokens(routes, plane)
    _add_joining(routes, plane)
    _add_nodes(routes, plane)
    return routes


def _add_tokens(routes: APIRouter, plane: ControlPlane) -> None:
    @routes.post("/join-tokens", status_code=201)
    async def new_token(
        ttl_s: Annotated[float, Query(gt=0, le=_MAX_TOKEN_TTL_S, allow_inf_nan=False)] = DEFAULT_TOKEN_TTL_S,
    ) -> JoinTokenView:
        """Make a token to join with. It is in this answer, and nowhere else."""
        return await plane.membership.keys.new_token(ttl_s)

    @routes.get("/join-tokens")
    async def tokens() -> list[JoinTokenView]:
        """Tokens that can still be used, without their secrets."""
        return await plane.membership.keys.tokens()

    @routes.delete("/join-tokens/{token_id}", status_code=204)
    async def revoke(token_id: str) -> None:
        """Let nobody join with it any more."""
        await plane.store.revoke_join_token(token_id)


def _add_joining(routes: APIRouter, plane: ControlPlane) -> None:
    @routes.post("/nodes/join")
    async def join(request: JoinRequest) -> CertificateAnswer:
        """Become a node. Needs no API token: the request is proven by a join token."""
        try:
            return await plane.membership.join(request)
        except GlowplugError as error:
            log.warning("a machine that calls itself %r may not join: %s", request.name[:48], error)
            plane.refused_joins.inc()
            raise

    @routes.post("/engine/join")
    async def join_engine(request: EngineJoinRequest) -> SealedAnswer:
        """The way into the engine's own cluster. Needs no API token, as joining."""
        try:
            return await plane.membership.let_into_engine(request)
        except GlowplugError as error:
            log.warning("the machine at %r may not join the engine's cluster: %s", request.host[:48], error)
            plane.refused_joins.inc()
            raise

    @routes.post("/nodes/renew")
    async def renew(request: RenewalRequest) -> CertificateAnswer:
        """The next certificate. Needs no API token: the request is signed with the node's key."""
        try:
            return await plane.membership.renew(request)
        except GlowplugError as error:
            log.warning("node %r gets no new certificate: %s", request.name[:48], error)
            plane.refused_joins.inc()
            raise


def _add_nodes(routes: APIRouter, plane: ControlPlane) -> None:
    @routes.get("/nodes")
    async def all_nodes() -> list[NodeStatus]:
        """The machines: what they may be used for, and why not."""
        return await plane.nodes()

    @routes.post("/nodes/{name}/drain")
    async def drain(name: str) -> NodeStatus:
        """Place nothing new there, and move what runs there elsewhere."""
        return await plane.node_status(await plane.membership.drain(name, is_draining=True))

    @routes.post("/nodes/{name}/undrain")
    async def undrain(name: str) -> NodeStatus:
        """Use it again."""
        return await plane.node_status(await plane.membership.drain(name, is_draining=False))

    @routes.delete("/nodes/{name}", status_code=204)
    async def remove(name: str, force: bool = False) -> None:
        """Take it out of the cluster."""
        await plane.membership.remove(name, force=force)
