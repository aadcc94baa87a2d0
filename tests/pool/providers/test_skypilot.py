"""What is said to SkyPilot's API server, and what is made of its answers; the server is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.port import MachineState, Order
from glowplug.pool.providers.skypilot import TOKEN_VARIABLE, SkyPilotProvider
from glowplug.pool.run_settings import SkyPilotEntry
from glowplug.types.errors import DeadlineExceeded, GlowplugError, SystemUnfit, Unauthorized, Unavailable

from .fake_sky import FakeSky

ORDER = Order(
    "test-0123abcd-1", "test", PoolId("gcp", "us-central1-a", "a2-highgpu-1g", Purchase.SPOT), "A100", 1
)


def provider(
    folder: Path, answer: Callable[[httpx.Request], httpx.Response], **entry: Any
) -> SkyPilotProvider:
    settings = SkyPilotEntry(kind="skypilot", cloud="gcp", **entry)
    return SkyPilotProvider("gcp", settings, folder / "sky.json", httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("region", "infra"),
    [
        ("us-central1", "gcp/us-central1"),
        ("us-central1-a", "gcp/us-central1/us-central1-a"),
        ("us-east-1", "gcp/us-east-1"),
        ("us-east-1b", "gcp/us-east-1/us-east-1b"),
        ("us-gov-west-1a", "gcp/us-gov-west-1/us-gov-west-1a"),
    ],
)
def test_the_task_asks_for_exactly_the_pools_machine(tmp_path: Path, region: str, infra: str) -> None:
    server = FakeSky()
    pool = PoolId("gcp", region, "a2-highgpu-1g", Purchase.SPOT)
    sky = provider(tmp_path, server.answer, disk_gb=200, setup="echo ready")
    sky.request(Order(ORDER.id, "test", pool, "A100", 1), 5.0)
    ((path, body),) = server.asked
    assert (path, body["cluster_name"], body["retry_until_up"]) == ("/launch", ORDER.id, False)
    task = yaml.safe_load(body["task"])
    assert (task["num_nodes"], task["setup"]) == (1, "echo ready")
    assert task["resources"] == {
        "infra": infra, "instance_type": "a2-highgpu-1g", "accelerators": {"A100": 1}, "use_spot": True,
        "labels": {"glowplug-fleet": "test", "glowplug-order": ORDER.id}, "disk_size": 200,
    }  # fmt: skip


def test_a_cluster_of_ours_that_no_file_remembers_is_listed_all_the_same(tmp_path: Path) -> None:
    server = FakeSky()
    provider(tmp_path, server.answer).request(ORDER, 5.0)
    (tmp_path / "sky.json").unlink()
    server.clusters["somebody-elses"] = {"name": "somebody-elses", "status": "UP", "cloud": "GCP"}
    server.clusters["test-0123abcd-2"] = {"name": "test-0123abcd-2", "status": "UP", "cloud": "AWS"}
    (found,) = provider(tmp_path, server.answer).machines("test", 5.0)
    assert (found.order, found.state) == (ORDER.id, MachineState.UP)


@pytest.mark.parametrize(
    ("status", "state"),
    [("INIT", MachineState.STARTING), ("STOPPED", MachineState.ENDING), ("NEW-WORD", MachineState.STARTING)],
)
def test_states_of_clusters(tmp_path: Path, status: str, state: MachineState) -> None:
    server = FakeSky()
    sky = provider(tmp_path, server.answer)
    sky.request(ORDER, 5.0)
    server.clusters[ORDER.id]["status"] = status
    (found,) = sky.machines("test", 5.0)
    assert (found.state, found.address) == (state, "")


def test_a_cluster_that_is_taken_away_is_gone(tmp_path: Path) -> None:
    server = FakeSky()
    sky = provider(tmp_path, server.answer)
    sky.request(ORDER, 5.0)
    server.clusters.clear()
    (found,) = sky.machines("test", 5.0)
    assert found.state is MachineState.GONE


def broken(status: int, **answer: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: httpx.Response(status, **answer)


def slow(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("too slow", request=request)


def away(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (slow, DeadlineExceeded),
        (away, Unavailable),
        (broken(401), Unauthorized),
        (broken(502, text="<html>bad gateway"), Unavailable),
        (broken(200, text="welcome"), Unavailable),
        (broken(200, json=None, headers={"X-Skypilot-Request-ID": "1"}), Unavailable),
        (broken(500, text="{", headers={"X-Skypilot-Request-ID": "1"}), Unavailable),
        (
            broken(
                200, json={"status": "SUCCEEDED", "return_value": "3"}, headers={"X-Skypilot-Request-ID": "1"}
            ),
            Unavailable,
        ),
    ],
)
def test_a_server_that_misbehaves_is_an_error_and_never_half_a_listing(
    tmp_path: Path, answer: Callable[[httpx.Request], httpx.Response], error: type[GlowplugError]
) -> None:
    with pytest.raises(error) as caught:
        provider(tmp_path, answer).machines("test", 5.0)
    assert caught.value.remedy


def test_a_cluster_that_cannot_be_taken_down_is_told(tmp_path: Path) -> None:
    server = FakeSky()
    sky = provider(tmp_path, server.answer)

    def refusing(request: httpx.Request) -> httpx.Response:
        answered = server.answer(request)
        if request.url.path == "/down":
            made = server.requests[answered.headers["X-Skypilot-Request-ID"]]
            made.status, made.error = (
                "FAILED",
                {"type": "PermissionDenied", "message": "no rights", "object": ""},
            )
        return answered

    sky.request(ORDER, 5.0)
    with pytest.raises(Unavailable, match="no rights"):
        provider(tmp_path, refusing).terminate(ORDER.id, 5.0)


def test_the_token_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "sky_secret")
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return FakeSky().answer(request)

    provider(tmp_path, answer).request(ORDER, 5.0)
    assert seen == ["Bearer sky_secret"]


@pytest.mark.parametrize("content", ["", "[]", '{"launches": {"a": [1]}}', json.dumps({"launches": 3})])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sky.json").write_text(content)
    with pytest.raises(SystemUnfit, match="cannot be used"):
        provider(tmp_path, FakeSky().answer)
