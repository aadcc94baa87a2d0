"""Apps that are too much, or that only their schema could let pass: refused in few words, nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.kubernetes.conftest import app, applied, condition, look, server
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import FakeControl

from glowplug.engine.kubernetes.app_keeper import AppKeeper

SHORT_CHARACTERS = 1100


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


EXCESSIVE = {
    "one variable": server(env={"A": "x" * (10 << 20)}),
    "all variables together": server(env={f"A{n}": "x" * 120_000 for n in range(10)}),
    "variables": server(env={f"A{n}": "" for n in range(2000)}),
    "a command": server(command=["x" * 1000] * 2000),
    "a NUL": server(command=["a\0b"]),
    "a path": server(volumes=[{"host_path": "/" + "x" * (1 << 20), "mount_path": "/x"}]),
    "a field's name": server(**{"x" * (1 << 20): 1}),
    "deep JSON": server(snapshot={"canary": [{"method": "POST", "path": "/", "json_body": nested(200)}]}),
    "a number": server(scaling={"scaledown_window_s": float("inf")}),
}


@pytest.mark.parametrize("excess", EXCESSIVE.values(), ids=EXCESSIVE.keys())
def test_what_is_too_much_is_refused_in_few_words_and_what_serves_goes_on(
    api: FakeApi,
    control: FakeControl,
    keeper: AppKeeper,
    excess: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper.keep(applied(api, app()))
    before = control.active()
    caplog.clear()
    keeper.keep(applied(api, app("shop", excess)))
    assert control.active() == before
    refusal = condition(look(api))
    assert (refusal["status"], refusal["reason"]) == ("False", "InvalidInput")
    assert refusal["message"].startswith("spec.servers.0")
    assert len(refusal["message"]) < SHORT_CHARACTERS
    assert condition(look(api), "Progressing")["reason"] == "Refused", "it is not tried again"
    (record,) = [one for one in caplog.records if "shop" in one.getMessage()]
    assert len(record.getMessage()) < SHORT_CHARACTERS
