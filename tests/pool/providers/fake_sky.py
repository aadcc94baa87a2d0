"""A FAKE of SkyPilot's API server. Requests are answered with an id; what becomes of them is fetched with it.

Its answers have the form that those of SkyPilot 0.14.1 have: of requests, refusals and cancellations as a
real server without any cloud gave them, of clusters as its source says; nothing is launched.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
import yaml


@dataclass
class FakeRequest:
    """As the server's table of requests has it."""

    name: str
    status: str
    value: Any = None
    error: dict[str, Any] | None = None

    def payload(self, request_id: str) -> dict[str, Any]:
        """``RequestPayload``: value and error are JSON in JSON."""
        return {
            "request_id": request_id, "name": f"sky.{self.name}", "entrypoint": "", "request_body": "{}",
            "status": self.status, "created_at": 0.0, "user_id": "u", "pid": 1, "schedule_type": "long",
            "return_value": json.dumps(self.value), "error": json.dumps(self.error), "should_retry": False,
        }  # fmt: skip


@dataclass
class FakeSky:
    """``capacity``: clusters at once, beyond which launches fail as they do when a cloud has none left."""

    capacity: int = 1_000
    requests: dict[str, FakeRequest] = field(default_factory=dict)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """One call."""
        path = request.url.path
        if path == "/api/get":
            return self._get(request.url.params["request_id"])
        if path == "/api/status":
            ids = request.url.params.get_list("request_ids")
            # As the real one: the list tells no values and no errors.
            told = {"return_value": "null", "error": "null", "pid": None}
            found = [{**self.requests[name].payload(name), **told} for name in ids if name in self.requests]
            return httpx.Response(200, json=found)
        body = json.loads(request.content)
        self.asked.append((path, body))
        made = {
            "/launch": self._launch,
            "/status": self._status,
            "/down": self._down,
            "/api/cancel": self._cancel,
        }
        if path not in made:
            return httpx.Response(404, json={"detail": "Not Found"})
        request_id = str(uuid.uuid4())
        self.requests[request_id] = made[path](body)
        return httpx.Response(200, json=None, headers={"X-Skypilot-Request-ID": request_id})

    def _get(self, request_id: str) -> httpx.Response:
        found = self.requests.get(request_id)
        if found is None:
            return httpx.Response(404, json={"detail": f"Request {request_id!r} not found"})
        if found.status == "FAILED":
            return httpx.Response(500, json={"detail": found.payload(request_id)})
        return httpx.Response(200, json=found.payload(request_id))

    def _launch(self, body: dict[str, Any]) -> FakeRequest:
        name, resources = body["cluster_name"], yaml.safe_load(body["task"])["resources"]
        if name not in self.clusters and len(self.clusters) >= self.capacity:
            message = "Failed to acquire resources in all zones in us-central1."
            return FakeRequest("launch", "FAILED", error=_error("ResourcesUnavailableError", message))
        cloud, region, *_zone = resources["infra"].split("/")
        self.clusters[name] = {
            "name": name, "status": "UP", "cloud": cloud.upper(), "region": region, "launched_at": 0,
            "autostop": -1, "to_down": False, "user_hash": "u", "resources_str": "1x", "last_use": "",
        }  # fmt: skip
        return FakeRequest("launch", "SUCCEEDED", {"job_id": 1, "handle": "gAROLg=="})

    def _status(self, body: dict[str, Any]) -> FakeRequest:
        return FakeRequest("status", "SUCCEEDED", list(self.clusters.values()))

    def _down(self, body: dict[str, Any]) -> FakeRequest:
        if self.clusters.pop(body["cluster_name"], None) is None:
            message = f"Cluster '{body['cluster_name']}' does not exist."
            return FakeRequest("down", "FAILED", error=_error("ClusterDoesNotExist", message))
        return FakeRequest("down", "SUCCEEDED")

    def _cancel(self, body: dict[str, Any]) -> FakeRequest:
        for name in body["request_ids"]:
            if self.requests[name].status in ("PENDING", "RUNNING"):
                self.requests[name].status = "CANCELLED"
        return FakeRequest("api_cancel", "SUCCEEDED", body["request_ids"])


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"object": "gAROLg==", "type": kind, "message": message}
