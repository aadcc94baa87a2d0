"""What a control plane answers that does not lead: its health, role and metrics, and to all else who does.

Requests to servers are refused too, with 503 and ``Retry-After``, rather than passed on: whoever asks again
is answered by the leader if the balancer in front looks at ``/healthz?leader``, or by us once we lead.
"""

from __future__ import annotations

import importlib.metadata
from urllib.parse import parse_qs

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from glowplug.control.answers import Receive, Scope, Send, deny_websocket, send_error
from glowplug.control.leadership import Leadership
from glowplug.control.messages import Health, LeadershipView, Role, StatusView
from glowplug.types.clock import Clock


class Standby:
    """An ASGI application for all paths. ``/api`` and ``/metrics`` are guarded by whoever is in front.

    It also answers for the moment in which we lead already, and do not know yet what is deployed.
    """

    def __init__(self, leadership: Leadership, clock: Clock) -> None:
        self._leadership = leadership
        self._clock = clock
        self._started_at_s = clock.monotonic()
        self._registry = CollectorRegistry()
        self._registry.register(leadership)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or one WebSocket."""
        if scope["type"] == "websocket":
            await receive()
            await deny_websocket(scope, send, self._leadership.refusal())
            return
        match (scope["method"], scope["path"]):
            case ("GET", "/healthz"):
                query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
                health = health_of(self._view())
                status = health_status(health, is_leader_wanted="leader" in query)
                await _send(send, status, health.model_dump_json().encode(), "application/json")
            case ("GET", "/metrics"):
                await _send(send, 200, generate_latest(self._registry), CONTENT_TYPE_LATEST)
            case ("GET", "/api/v1/status"):
                await _send(send, 200, self._status().model_dump_json().encode(), "application/json")
            case _:
                await send_error(send, self._leadership.refusal())

    def _status(self) -> StatusView:
        return StatusView(
            version=importlib.metadata.version("glowplug"),
            uptime_s=self._clock.monotonic() - self._started_at_s,
            nodes=[],
            apps=[],
            leadership=self._view(),
        )

    def _view(self) -> LeadershipView:
        return self._leadership.view().model_copy(update={"role": Role.STANDBY})


def health_of(view: LeadershipView) -> Health:
    """What ``GET /healthz`` says."""
    return Health(role=view.role, term=view.term, leader=view.leader)


def health_status(health: Health, *, is_leader_wanted: bool) -> int:
    """200, unless a balancer asks for one that serves requests and we do not."""
    return 503 if is_leader_wanted and not health.role.serves else 200


async def _send(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
