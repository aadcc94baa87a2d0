"""The router on a node in one piece: every part made, wired, and released in reverse."""

from __future__ import annotations

import asyncio
import importlib.metadata
import random
import secrets
import socket
from collections.abc import Callable

import uvicorn
from prometheus_client import CollectorRegistry

from glowplug.control.access import Gate, load_or_create_token
from glowplug.control.edge.application import EdgeApplication
from glowplug.control.edge.follower import Follower
from glowplug.control.edge.identity import RouterIdentity
from glowplug.control.edge.metrics import EdgeCollector
from glowplug.control.edge.table import RouteTable
from glowplug.control.edge.upstream import Upstream
from glowplug.control.http_server import RouterServer, raise_file_limit, serve_until_told
from glowplug.control.overhead import OverheadHistogram
from glowplug.control.peer_user import PeerUsers
from glowplug.control.router import Router
from glowplug.control.timings import Timings
from glowplug.identity.membership import renewal_request
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import MembershipRecord
from glowplug.types.paths import StateDir
from glowplug.types.routes import RouterHello

# Control takes what a replica here did not: no need to try a node that is not reached again and again.
_TIMINGS = Timings(suspect_refused_s=5.0)


async def serve_router(
    state: StateDir,
    record: MembershipRecord,
    listener: socket.socket,
    *,
    on_server: Callable[[uvicorn.Server], None] = lambda _server: None,
) -> None:
    """Serve until told to end. Takes over ``listener``. Raises what a bug in following control raises."""
    raise_file_limit()
    clock = SystemClock()
    identity = RouterIdentity(state.identity)
    upstream = Upstream(record.control_url, clock)
    table = RouteTable(
        record.name,
        state.agent_socket,
        upstream,
        lambda: identity.context,
        clock=clock,
        rng=random.Random(),  # noqa: S311 - which of several replicas is no secret
    )
    hello = _hello(state, record, listener)
    follower = Follower(state.router_socket, hello, table, upstream, identity.accept)
    overhead = OverheadHistogram()
    registry = CollectorRegistry()
    registry.register(EdgeCollector(table, upstream, follower, overhead))
    router = Router(table, timings=_TIMINGS, clock=clock, overhead=overhead)
    gate = Gate(load_or_create_token(state.token), PeerUsers().is_trusted)
    server = RouterServer(EdgeApplication(router, table, upstream, registry, gate))
    following = asyncio.get_running_loop().create_task(follower.run())
    following.add_done_callback(lambda _: server.end())  # by a bug: the supervisor starts us again
    on_server(server)
    try:
        await serve_until_told(server, listener)
        if following.done():
            following.result()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await table.close()
        await upstream.close()


def _hello(state: StateDir, record: MembershipRecord, listener: socket.socket) -> RouterHello:
    host, port = listener.getsockname()[:2]
    return RouterHello(
        boot=secrets.token_hex(8),
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        glowplug=importlib.metadata.version("glowplug"),
        signing_request=renewal_request(state.identity, record.name).signing_request,
    )
