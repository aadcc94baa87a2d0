"""Requests, hooks and snapshots as users write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glowplug as gp
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import Hook, HttpCall, SnapshotSpec

from .conftest import patient

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
paths = st.from_regex(r"/[!-~]{0,30}", fullmatch=True)


@patient
@given(
    method=st.sampled_from(["GET", "POST", "PUT"]),
    path=paths,
    body=json_values,
    gap=st.text(" \t\n", min_size=1),
)
def test_a_request_means_what_its_text_says(method: str, path: str, body: Any, gap: str) -> None:
    written = f"{method}{gap}{path}" + ("" if body is None else f"{gap}{json.dumps(body)}")
    request = gp.Request.parse(written, "warmup")
    assert request == gp.Request(method, path, json=body)
    assert HttpCall.model_validate(request.to_spec()) == HttpCall(method=method, path=path, json_body=body)


@patient
@given(text=st.text())
def test_any_text_is_a_valid_request_or_refused(text: str) -> None:
    try:
        request = gp.Request.parse(text, "warmup")
    except InvalidInput:
        return
    HttpCall.model_validate(json.loads(json.dumps(request.to_spec())))


def test_a_bare_path_is_a_get() -> None:
    assert gp.Request.parse("/health", "ready") == gp.Request("GET", "/health")


@pytest.mark.parametrize(
    "text",
    ["", "health", "DELETE /x", "POST", "POST x", "GET /a b", "POST /x {", 'POST /x {"a": 1} tail', "get /x"],
)
def test_texts_that_are_no_requests_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        gp.Request.parse(text, "warmup")
    assert caught.value.remedy


def test_a_body_that_is_not_json_is_refused() -> None:
    for body in (object(), float("nan"), {"a": {1, 2}}, "\ud800"):
        with pytest.raises(InvalidInput, match="not JSON data"):
            gp.Request("POST", "/x", json=body)


def test_ignored_keys_default_to_those_of_the_openai_api() -> None:
    assert "created" in HttpCall.model_validate(gp.Request("GET", "/x").to_spec()).ignore
    assert HttpCall.model_validate(gp.Request("GET", "/x", ignore=["seed"]).to_spec()).ignore == ["seed"]
    with pytest.raises(InvalidInput):
        gp.Request("GET", "/x", ignore="seed")


def test_a_snapshot_described_in_full() -> None:
    snapshot = gp.Snapshot(
        warmup=['POST /v1/completions {"prompt": "hi"}', gp.Request("GET", "/x")],
        canary=["GET /v1/models"],
        before_snapshot=gp.Hook(http="POST /sleep"),
        after_restore=gp.Hook(command=["/bin/refresh", "--now"]),
        secrets_in_snapshot=True,
        weights="stream",
    )
    spec = SnapshotSpec.model_validate(snapshot.to_spec())
    assert [call.path for call in spec.warmup] == ["/v1/completions", "/x"]
    assert [call.path for call in spec.canary] == ["/v1/models"]
    assert spec.before_snapshot == Hook(http=HttpCall(method="POST", path="/sleep"))
    assert spec.after_restore == Hook(command=["/bin/refresh", "--now"])
    assert spec.secrets_in_snapshot
    assert spec.weights == "stream"


def test_weights_are_kept_or_streamed() -> None:
    assert SnapshotSpec.model_validate(gp.Snapshot(weights="keep").to_spec()) == SnapshotSpec()
    with pytest.raises(InvalidInput, match="weights cannot be"):
        gp.Snapshot(weights="elsewhere")


def test_true_and_false_are_short_for_the_usual_snapshot_and_none() -> None:
    assert SnapshotSpec.model_validate(gp.Snapshot.parse(True).to_spec()) == SnapshotSpec()
    assert not SnapshotSpec.model_validate(gp.Snapshot.parse(False).to_spec()).enabled


def test_a_gpu_snapshot_is_said_in_the_specification() -> None:
    assert SnapshotSpec.model_validate(gp.Snapshot(gpu=True).to_spec()).gpu
    assert "gpu" not in gp.Snapshot().to_spec(), "so that older nodes understand it"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: gp.Snapshot(warmup="GET /x"),
        lambda: gp.Snapshot(canary=[3]),  # type: ignore[list-item]
        lambda: gp.Snapshot(enabled="yes"),  # type: ignore[arg-type]
        lambda: gp.Snapshot(before_snapshot="POST /sleep"),  # type: ignore[arg-type]
        lambda: gp.Hook(),
        lambda: gp.Hook(http="POST /x", signal="SIGHUP"),
        lambda: gp.Hook(signal="SIGKILL"),
        lambda: gp.Hook(command=[]),
        lambda: gp.Hook(command="reload"),
        lambda: gp.Snapshot.parse(None),
    ],
)
def test_malformed_snapshots_and_hooks_are_refused(mistake: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        mistake()
    assert caught.value.remedy
