"""The operator as a whole: kopf over HTTP against kmock, and a control plane in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kopf
import pytest
from tests.engine.kubernetes.conftest import NAMESPACE, app, condition, eventually, server
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import FakeControl, replica
from tests.engine.kubernetes.mock_cluster import MockCluster

from glowplug.engine.kubernetes import app_keeper
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.kopf_memory import DigestStorage
from glowplug.engine.kubernetes.names import APPS, DAEMON_SETS, FINALIZER, REPLICAS
from glowplug.engine.kubernetes.operator import Operator, OperatorSettings, _configure, forget_apps
from glowplug.engine.kubernetes.rounds import MAX_WAIT_S, Job, Rounds
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import InvalidInput, RuntimeFailed, SystemUnfit, Unavailable
from glowplug.types.spec import AppSpec

QUICK = OperatorSettings(
    namespace=NAMESPACE, replicas_every_s=0.1, apps_every_s=0.1, nodes_every_s=0.5, pools_every_s=0.5
)


@contextmanager
def running(cluster: MockCluster, control: FakeControl) -> Iterator[Operator]:
    """An operator in a thread; it has ended when the context is left."""
    made = Operator(cluster.access, control, SystemClock(), QUICK)
    stop, ready = threading.Event(), threading.Event()
    ended: list[BaseException | None] = []

    def run() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        try:
            made.run(stop, ready)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="operator", daemon=True)
    thread.start()
    try:
        assert ready.wait(60.0), f"the operator did not start: {ended}"
        yield made
    finally:
        stop.set()
        thread.join(60.0)
    assert ended == [None]


@pytest.fixture
def kube(cluster: MockCluster) -> Iterator[KubernetesApi]:
    with KubernetesApi(cluster.access) as made:
        labels = {"app.kubernetes.io/component": "agent"}
        made.create(DAEMON_SETS, {"metadata": {"name": "gp-agent", "labels": labels}}, NAMESPACE)
        yield made


def found(kube: KubernetesApi, name: str = "shop") -> dict[str, Any]:
    return next((one for one in kube.list(APPS, NAMESPACE) if one["metadata"]["name"] == name), {})


def applied(kube: KubernetesApi, name: str = "shop") -> None:
    """kmock counts no versions, and kopf asks for one that has not changed: each object has the one."""
    body = app(name)
    body["metadata"]["resourceVersion"] = "1"
    kube.create(APPS, body, NAMESPACE)


def test_an_app_from_its_creation_to_its_end(
    cluster: MockCluster, kube: KubernetesApi, control: FakeControl
) -> None:
    control.replica_views = [replica()]
    with running(cluster, control):
        applied(kube)
        eventually(lambda: condition(found(kube)).get("status") == "True", "it is deployed")
        assert FINALIZER in found(kube)["metadata"]["finalizers"]
        eventually(lambda: kube.list(REPLICAS, NAMESPACE), "its replica is shown")

        kube.patch(APPS, "shop", {"spec": {"servers": [server(port=9000)]}}, NAMESPACE)
        eventually(lambda: [one.version for one in control.active()] == [2], "the change is deployed")

        kube.delete(APPS, "shop", NAMESPACE)
        eventually(lambda: not found(kube), "it is gone")
        assert control.removed == ["shop"]


def test_a_refusal_is_shown_and_a_correction_deployed(
    cluster: MockCluster, kube: KubernetesApi, control: FakeControl
) -> None:
    control.refusal = InvalidInput("There is no folder /srv/web.", remedy="Make it.")
    with running(cluster, control):
        applied(kube)
        eventually(lambda: condition(found(kube)).get("reason") == "InvalidInput", "it is said")
        assert not control.active()
        control.refusal = None
        kube.patch(APPS, "shop", {"spec": {"servers": [server(port=9000)]}}, NAMESPACE)
        eventually(lambda: condition(found(kube)).get("status") == "True", "it is deployed")


def test_an_operator_that_comes_back_deploys_what_came_meanwhile_and_nothing_twice(
    cluster: MockCluster, kube: KubernetesApi, control: FakeControl
) -> None:
    with running(cluster, control):
        applied(kube)
        eventually(lambda: condition(found(kube)).get("status") == "True", "it is deployed")
    applied(kube, "other")
    with running(cluster, control):
        eventually(lambda: condition(found(kube, "other")).get("status") == "True", "the new one, too")
    assert [len(versions) for versions in control.versions.values()] == [1, 1]


def test_a_control_plane_that_is_away_is_waited_for(
    cluster: MockCluster, kube: KubernetesApi, control: FakeControl
) -> None:
    control.away = Unavailable("Nothing answers at http://control.", remedy="Wait.")
    with running(cluster, control):
        applied(kube)
        eventually(lambda: condition(found(kube)).get("reason") == "Unavailable", "it is said")
        control.away = None
        eventually(lambda: condition(found(kube)).get("status") == "True", "it is deployed")


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is due again in five minutes."""
    monkeypatch.setattr(app_keeper, "_RETRY_FIRST_S", 300.0)


def attempt(kube: KubernetesApi) -> str:
    """What kopf has noted of the last one."""
    annotations = found(kube)["metadata"].get("annotations") or {}
    return str(annotations.get("operator.glowplug.dev/deploy", ""))


def is_due_later(kube: KubernetesApi) -> bool:
    """For good: kmock counts no versions, so kopf takes old events for new ones, and tries a few times."""
    before = attempt(kube)
    time.sleep(0.5)
    return "delayed" in before and attempt(kube) == before


@pytest.mark.usefixtures("long_waits")
def test_an_operator_that_was_started_again_does_not_wait_for_its_predecessors_next_attempt(
    cluster: MockCluster, kube: KubernetesApi, control: FakeControl
) -> None:
    control.refusal = RuntimeFailed("The disk was busy.")
    with running(cluster, control):
        applied(kube)
        eventually(lambda: is_due_later(kube), "it is due again later")
    control.refusal = None
    with running(cluster, control):
        eventually(lambda: condition(found(kube)).get("status") == "True", "it is deployed")
        eventually(lambda: not attempt(kube), "and nothing is due")


@pytest.mark.usefixtures("long_waits")
def test_a_corrected_app_does_not_wait_for_the_next_attempt_at_what_it_was(
    cluster: MockCluster, kube: KubernetesApi, control: FakeControl
) -> None:
    control.refusal = RuntimeFailed("pip failed: no such package.")
    with running(cluster, control):
        applied(kube)
        eventually(lambda: is_due_later(kube), "it is due again later")
        control.refusal = None
        corrected = {"servers": [server(port=9000)]}
        kube.patch(APPS, "shop", {"spec": corrected}, NAMESPACE)
        wanted = AppSpec.model_validate({"name": "shop", **corrected}).digest()
        eventually(lambda: [one.spec_digest for one in control.active()] == [wanted], "it is deployed")


@pytest.mark.nightly
def test_a_bug_in_a_round_ends_the_operator(cluster: MockCluster, control: FakeControl) -> None:
    made = Operator(cluster.access, control, SystemClock(), QUICK)
    control.away = ZeroDivisionError("a bug")  # type: ignore[assignment]

    def run() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        with pytest.raises(SystemUnfit, match="a bug"):
            made.run()

    thread = threading.Thread(target=run, name="operator", daemon=True)
    thread.start()
    thread.join(60.0)
    assert not thread.is_alive()


# -- without kopf's loop -------------------------------------------------------------------------------------


def test_what_was_handled_is_remembered_as_a_digest() -> None:
    storage = DigestStorage()
    large = app("shop", *[server(f"web-{number}", env={"A": "x" * 4000}) for number in range(200)])

    def essence(body: dict[str, Any]) -> Any:
        return storage.build(body=kopf.Body(body))

    assert len(str(essence(large))) < 200
    assert essence(large) == essence({**large, "status": {"version": 7}})
    assert essence(large) != essence(app())
    marked = app()
    marked["metadata"]["annotations"] = {"glowplug.dev/redeploy": "1"}
    assert essence(marked) != essence(app())


def test_the_api_server_is_told_of_whole_seconds() -> None:
    settings = kopf.OperatorSettings()
    _configure(settings)
    assert str(settings.watching.server_timeout).isdigit(), "it refuses to watch for 300.0 seconds"


def test_apps_can_be_let_go_before_the_operator_is_removed(api: FakeApi) -> None:
    body = app()
    body["metadata"]["finalizers"] = ["other.example/keep", FINALIZER]
    api.put(APPS, body, NAMESPACE)
    body["metadata"] = {
        "name": "going",
        "finalizers": [FINALIZER],
        "deletionTimestamp": "2026-01-01T00:00:00Z",
    }
    api.put(APPS, body, NAMESPACE)
    assert forget_apps(api, NAMESPACE) == ["shop", "going"]
    (left,) = api.list(APPS, NAMESPACE)
    assert left["metadata"]["finalizers"] == ["other.example/keep"]


def test_a_bug_in_a_round_is_told_to_who_watches(clock: ManualClock) -> None:
    rounds = Rounds([Job("bug", 1.0, lambda: 1 / 0 and None)], clock, OperatorCounters())
    rounds.start()
    assert rounds.is_over.wait(60.0)
    assert isinstance(rounds.bug, ZeroDivisionError)


def test_a_round_that_fails_is_repeated_later_and_later_and_the_others_go_on(clock: ManualClock) -> None:
    done: list[str] = []

    def fails() -> None:
        done.append("fails")
        raise Unavailable("Away.")

    counters = OperatorCounters()
    jobs = [Job("bad", 2.0, fails), Job("good", 5.0, lambda: done.append("good"))]
    rounds = Rounds(jobs, clock, counters)
    for _ in range(120):
        rounds.once()
        clock.advance(1.0)
    assert done.count("good") == 24
    assert 5 <= done.count("fails") <= 10
    assert jobs[0].due_at_s - clock.monotonic() <= MAX_WAIT_S
    failures = counters.registry.get_sample_value("glowplug_operator_failures_total", {"job": "bad"})
    assert failures == done.count("fails")
