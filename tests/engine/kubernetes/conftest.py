"""What the tests of this folder share. All of them need the extra `kubernetes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import pytest
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import FakeControl
from tests.engine.kubernetes.mock_cluster import MockCluster

from glowplug.engine.kubernetes.app_keeper import AppKeeper
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.names import API_VERSION, APPS
from glowplug.types.clock import ManualClock

NAMESPACE = "serving"


def server(name: str = "web", **fields: Any) -> dict[str, Any]:
    """A server of an App, as its object says it."""
    return {"name": name, "image": {"kind": "directory", "path": "/srv/web"}, "command": ["serve"], **fields}


def app(name: str = "shop", *servers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """An App's object."""
    return {
        "apiVersion": API_VERSION,
        "kind": "App",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"servers": list(servers) or [server()], **spec},
    }


def applied(api: FakeApi, body: dict[str, Any]) -> dict[str, Any]:
    """As `kubectl apply`: made, or changed."""
    name = body["metadata"]["name"]
    if (APPS, NAMESPACE, name) in api.objects:
        return api.patch(APPS, name, {"spec": body["spec"]}, NAMESPACE)
    return api.create(APPS, body, NAMESPACE)


def look(api: FakeApi, name: str = "shop") -> dict[str, Any]:
    return api.get(APPS, name, NAMESPACE)


def condition(body: dict[str, Any], kind: str = "Ready") -> dict[str, Any]:
    """One of its conditions; empty if nothing was said."""
    found = body.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def eventually(found: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait until it is true; fails naming it after the deadline."""
    deadline_s = monotonic() + timeout_s
    while not (result := found()):
        assert monotonic() < deadline_s, f"never happened: {what}"
        sleep(0.02)
    return result


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def counters() -> OperatorCounters:
    return OperatorCounters()


@pytest.fixture
def keeper(api: FakeApi, control: FakeControl, clock: ManualClock, counters: OperatorCounters) -> AppKeeper:
    return AppKeeper(api, control, clock, counters)


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    """kmock, over HTTP."""
    made = MockCluster()
    yield made
    made.close()
