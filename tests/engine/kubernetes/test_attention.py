"""No App is forgotten: what nobody attends to is told of again, and an operator that hears nothing ends."""

from __future__ import annotations

import json
from typing import Any

import kopf
import pytest
from tests.engine.kubernetes.conftest import NAMESPACE, app, server
from tests.engine.kubernetes.fake_api import FakeApi

from glowplug.engine.kubernetes.attention import DEAF_AFTER_S, REMINDER_ANNOTATION, Attention, Deaf
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.kopf_memory import AttemptStorage, DigestStorage
from glowplug.engine.kubernetes.names import APPS, FINALIZER, REDEPLOY_ANNOTATION
from glowplug.types.clock import ManualClock
from glowplug.types.errors import InvalidInput

EVERY_S = 5.0


@pytest.fixture
def attention(api: FakeApi, clock: ManualClock, counters: OperatorCounters) -> Attention:
    return Attention(api, clock, counters)


def handled_now(body: Any) -> Any:
    return DigestStorage().build(body=kopf.Body(body))


def handled(api: FakeApi, name: str = "shop") -> None:
    """As kopf notes when it is done."""
    digest = json.dumps(handled_now(api.get(APPS, name, NAMESPACE)))
    api.patch(APPS, name, {"metadata": {"annotations": {"operator.glowplug.dev/handled": digest}}}, NAMESPACE)


def reminder(api: FakeApi, name: str = "shop") -> str | None:
    annotations: dict[str, str] = api.get(APPS, name, NAMESPACE)["metadata"].get("annotations") or {}
    return annotations.get(REMINDER_ANNOTATION)


def looks(api: FakeApi, attention: Attention, clock: ManualClock, seconds: float) -> None:
    for _ in range(int(seconds / EVERY_S)):
        attention.look(api.list(APPS, NAMESPACE))
        clock.advance(EVERY_S)


def test_what_is_handled_is_left_in_peace(api: FakeApi, attention: Attention, clock: ManualClock) -> None:
    api.create(APPS, app(), NAMESPACE)
    handled(api)
    looks(api, attention, clock, 10 * DEAF_AFTER_S)
    assert reminder(api) is None


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"servers": [server(port=9000)]}},
        {"metadata": {"annotations": {REDEPLOY_ANNOTATION: "1"}}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}},
    ],
    ids=["changed", "to be deployed again", "deleted"],
)
def test_what_nobody_attends_to_is_told_of_again_every_while(
    api: FakeApi, attention: Attention, clock: ManualClock, counters: OperatorCounters, change: dict[str, Any]
) -> None:
    api.create(APPS, app(), NAMESPACE)
    handled(api)
    api.patch(APPS, "shop", change, NAMESPACE)
    looks(api, attention, clock, 10.0)
    assert reminder(api) is None, "kopf is given a moment"
    looks(api, attention, clock, 30.0)
    assert reminder(api)
    assert counters.registry.get_sample_value("glowplug_operator_reminders_total") == 3


def test_a_reminder_is_no_change(api: FakeApi, attention: Attention, clock: ManualClock) -> None:
    made = api.create(APPS, app(), NAMESPACE)
    before = handled_now(made)
    looks(api, attention, clock, 30.0)
    after = api.get(APPS, "shop", NAMESPACE)
    assert reminder(api)
    assert handled_now(after) == before


def test_an_operator_that_hears_of_nothing_ends(
    api: FakeApi, attention: Attention, clock: ManualClock
) -> None:
    api.create(APPS, app(), NAMESPACE)
    with pytest.raises(Deaf, match="shop"):
        looks(api, attention, clock, DEAF_AFTER_S + 2 * EVERY_S)


def test_what_is_worked_on_or_due_later_is_attended_to(
    api: FakeApi, attention: Attention, clock: ManualClock
) -> None:
    api.create(APPS, app(), NAMESPACE)
    with attention.paid_to("shop"):
        looks(api, attention, clock, 10 * DEAF_AFTER_S)
    attention.again("shop", 300.0)
    looks(api, attention, clock, 300.0)
    assert reminder(api) is None
    looks(api, attention, clock, 30.0)
    assert reminder(api), "it was due, and nobody came"


def test_who_is_at_work_on_many_is_not_deaf(api: FakeApi, attention: Attention, clock: ManualClock) -> None:
    api.create(APPS, app(), NAMESPACE)
    api.create(APPS, app("other"), NAMESPACE)
    with attention.paid_to("other"):
        looks(api, attention, clock, 10 * DEAF_AFTER_S)
    assert reminder(api)


def test_time_in_which_nobody_could_look_does_not_count(
    api: FakeApi, attention: Attention, clock: ManualClock
) -> None:
    api.create(APPS, app(), NAMESPACE)
    looks(api, attention, clock, EVERY_S)
    clock.advance(3600.0)  # the API server is away
    looks(api, attention, clock, 2 * EVERY_S)


def test_attempts_count_for_one_process_and_one_specification() -> None:
    whole: Any = app()
    body = kopf.Body(whole)
    record: Any = {"started": "2026-01-01T00:00:00", "retries": 3, "success": False}
    storage, patch = AttemptStorage(), kopf.Patch()
    storage.store(key=kopf.HandlerId("deploy"), record=record, body=body, patch=patch)
    stored = {"metadata": {"name": "shop", "annotations": dict(patch["metadata"]["annotations"])}}

    def fetched(storage: AttemptStorage, **fields: Any) -> Any:
        told: Any = {**app(**fields), **stored}
        return storage.fetch(key=kopf.HandlerId("deploy"), body=kopf.Body(told))

    assert fetched(storage) == record, "as it was, or kopf writes it again and again"
    assert fetched(AttemptStorage()) is None
    assert fetched(storage, servers=[server(port=9000)]) is None


UNSOUND = pytest.mark.parametrize("written", ["{", "[1]", "[" * 100_000], ids=["torn", "a list", "deep"])


@UNSOUND
def test_what_somebody_else_noted_as_handled_is_not_handled(
    api: FakeApi, attention: Attention, clock: ManualClock, written: str
) -> None:
    body = app()
    body["metadata"]["annotations"] = {"operator.glowplug.dev/handled": written}
    api.create(APPS, body, NAMESPACE)
    looks(api, attention, clock, 20.0)
    assert reminder(api)
    handled(api)
    looks(api, attention, clock, 2 * DEAF_AFTER_S)


@UNSOUND
def test_what_somebody_else_noted_as_an_attempt_is_none(written: str) -> None:
    whole: Any = app()
    whole["metadata"]["annotations"] = {"operator.glowplug.dev/deploy": written}
    assert AttemptStorage().fetch(key=kopf.HandlerId("deploy"), body=kopf.Body(whole)) is None


def test_a_reminder_that_is_refused_keeps_nobody_from_theirs_and_is_no_deafness(
    api: FakeApi,
    attention: Attention,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    patch = api.patch

    def refused(resource: str, name: str, *rest: Any, **named: Any) -> Any:
        if name == "a-shop":
            raise InvalidInput("metadata.annotations: too long", remedy="Correct the named fields.")
        return patch(resource, name, *rest, **named)

    monkeypatch.setattr(api, "patch", refused)
    api.create(APPS, app("a-shop"), NAMESPACE)
    api.create(APPS, app("shop"), NAMESPACE)
    looks(api, attention, clock, 30.0)
    assert reminder(api)
    handled(api)
    looks(api, attention, clock, 3 * DEAF_AFTER_S)
    assert (reminder(api, "a-shop"), "app a-shop cannot be told of again" in caplog.text) == (None, True)
