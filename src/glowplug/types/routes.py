"""What the control plane and the routers of its nodes tell each other: one JSON message a line, both ways.

Control opens the connection, through the node's gateway. The router says who it is (:class:`RouterHello`);
from then on control sends :class:`RouteUpdate`, of which the first holds the whole table, and the router
:class:`RouterReport`: what it has applied, and what it has sent where. Both say something each second at
least. All counts in a report are totals of the router's life, so a report that is lost or read twice changes
nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from glowplug.types.cluster import CertificateAnswer, SigningRequest
from glowplug.types.ids import NAME_PATTERN
from glowplug.types.replica import Endpoint, Message

MAX_REPORT_BYTES = 4 << 20
MAX_UPDATE_BYTES = 64 << 20
MAX_IN_FLIGHT = 100_000
"""More than that at once is nothing that a router does."""
SILENCE_LIMIT_S = 5.0
"""Either side says something each second: five missing ones mean that the other one hangs, or is gone."""


class NodeRoute(Message):
    """Where a node's gateway is."""

    name: str
    host: str
    port: int


class ReplicaRoute(Message):
    """One replica. ``is_open``: it may be given requests; else it finishes those that it has."""

    id: str
    node: str
    endpoint: Endpoint
    is_open: bool = True


class ServerRoutes(Message):
    """One server: the replicas that routers can reach. What is not listed any more is over.

    ``has_others``: control itself reaches more of them.
    """

    app: str
    server: str
    request_timeout_s: float
    target_concurrency: int
    replicas: list[ReplicaRoute] = []
    has_others: bool = False


class ServerName(Message):
    """A server that was removed."""

    app: str
    server: str


class RouteUpdate(Message):
    """What has changed since the last one, or (``is_whole``) all there is.

    ``term`` is the sender's: a router listens to the newest leader. ``control_url`` is where requests that no
    replica can take are handed on to, where there are several control planes. ``outstanding``: requests
    that all routers together have at a replica, where a server has several. ``certificate``: the router's
    next one.
    """

    term: int
    version: int
    is_whole: bool = False
    control_url: str | None = None
    nodes: list[NodeRoute] | None = None
    servers: list[ServerRoutes] = []
    gone: list[ServerName] = []
    outstanding: dict[str, int] = {}
    certificate: CertificateAnswer | None = None


class RouterHello(Message):
    """A router's first line. ``boot`` is drawn anew with each of its lives, ``address`` where it serves."""

    boot: str = Field(pattern=r"^[0-9a-f]{16}$")
    address: str = Field(max_length=300)
    glowplug: str = Field(max_length=64)
    signing_request: SigningRequest


class ServerReport(Message):
    """One server's requests at this router, without those that it handed on.

    ``started``: since the router began. ``peak``: most at once since the report before. ``in_flight``: by
    replica, those without any left out.
    """

    app: str = Field(pattern=NAME_PATTERN)
    server: str = Field(pattern=NAME_PATTERN)
    started: int = Field(ge=0)
    peak: int = Field(ge=0, le=MAX_IN_FLIGHT)
    in_flight: dict[str, Annotated[int, Field(ge=1, le=MAX_IN_FLIGHT)]] = {}


class RouterReport(Message):
    """``version``: that of the last update it has applied; what it reports here is from after that.

    ``servers`` are those of which something has changed since the report before; in the first one of a
    connection, all that were ever used.
    """

    version: int = Field(ge=0)
    servers: list[ServerReport] = []
