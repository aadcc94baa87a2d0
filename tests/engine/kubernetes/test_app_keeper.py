"""Apps are deployed as their objects say, told about, undeployed before they go; nobody waits for ever."""

from __future__ import annotations

import base64
import threading
from typing import Any

import pytest
from tests.engine.kubernetes.conftest import NAMESPACE, app, applied, condition, eventually, look, server
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import FakeControl

from glowplug.engine.kubernetes.app_keeper import UNDEPLOY_DEADLINE_S, AppKeeper, Retry
from glowplug.engine.kubernetes.conditions import timestamp
from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.names import APPS, REDEPLOY_ANNOTATION, SECRETS
from glowplug.types.clock import ManualClock
from glowplug.types.errors import InvalidInput, NotLeader, RuntimeFailed, Unauthorized, Unavailable
from glowplug.types.replica import ErrorInfo

AWAY = Unavailable("Nothing answers at http://control.", remedy="Wait.")


def secret(api: FakeApi, **values: str) -> None:
    data = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    api.put(SECRETS, {"metadata": {"name": "keys"}, "data": data}, NAMESPACE)


# -- deploying -----------------------------------------------------------------------------------------------


def test_an_app_is_deployed_and_its_status_says_so(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    (active,) = control.active()
    status = look(api)["status"]
    assert (status["deploymentId"], status["version"], status["observedGeneration"]) == (active.id, 1, 1)
    assert status["urls"] == {"web": "/shop/web"}
    assert (condition(look(api))["status"], condition(look(api))["reason"]) == ("True", "Deployed")
    assert condition(look(api), "Progressing")["status"] == "False"


def test_what_is_deployed_already_is_not_deployed_again(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    writes = len(api.writes)
    keeper.keep(look(api))
    keeper.keep(look(api), is_changed=False)
    assert len(control.versions["shop"]) == 1
    assert len(api.writes) == writes, "and nothing is written"


def test_a_change_is_another_version(api: FakeApi, control: FakeControl, keeper: AppKeeper) -> None:
    keeper.keep(applied(api, app()))
    keeper.keep(applied(api, app("shop", server(command=["serve", "better"]))))
    assert [one.active for one in control.versions["shop"]] == [False, True]
    assert look(api)["status"]["observedGeneration"] == 2
    assert condition(look(api))["observedGeneration"] == 2


def test_while_its_images_are_made_the_status_says_what_goes_on(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    control.gate.clear()
    changed = applied(api, app("shop", server(port=9000)))
    working = threading.Thread(target=keeper.keep, args=(changed,))
    working.start()
    eventually(lambda: condition(look(api), "Progressing")["status"] == "True", "it is said")
    assert condition(look(api))["status"] == "False"
    assert "Version 1 serves" in condition(look(api))["message"]
    with pytest.raises(Retry):
        keeper.keep(changed)  # somebody else is at it
    keeper.refresh([look(api)], control.deployments(), [])
    assert condition(look(api), "Progressing")["status"] == "True", "nobody else speaks meanwhile"
    control.gate.set()
    working.join(60.0)
    assert condition(look(api))["status"] == "True"


def test_what_only_the_whole_shows_is_refused_in_the_status_and_not_tried_again(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app("shop", server(), server())))
    assert not control.versions
    refusal = condition(look(api))
    assert (refusal["status"], refusal["reason"]) == ("False", "InvalidInput")
    assert "have one name" in refusal["message"]
    assert "apply it again" in refusal["message"], "with a remedy"
    assert condition(look(api), "Progressing")["reason"] == "Refused"


def test_a_refusal_of_the_control_plane_changes_nothing(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    before = control.active()
    control.refusal = InvalidInput("There is no folder /srv/web.", remedy="Make it.")
    keeper.keep(applied(api, app("shop", server(port=9000))))
    assert control.active() == before
    assert condition(look(api))["message"] == "There is no folder /srv/web. Make it."
    assert look(api)["status"]["version"] == 1, "what serves is still said"


@pytest.mark.parametrize(
    ("error", "longest_s"),
    [
        (AWAY, 30.0),
        (NotLeader("Another leads."), 30.0),
        (RuntimeFailed("pip failed."), 300.0),
        (Unauthorized("The token is wrong."), 300.0),
    ],
)
def test_what_may_pass_is_tried_again_later_and_later(
    api: FakeApi, control: FakeControl, keeper: AppKeeper, error: Any, longest_s: float
) -> None:
    control.refusal = error
    body = applied(api, app())
    waits = []
    for attempt in range(12):
        with pytest.raises(Retry) as caught:
            keeper.keep(body, attempt=attempt)
        waits.append(caught.value.after_s)
    assert waits[:3] == [2.0, 4.0, 8.0]
    assert waits[-1] == longest_s
    assert condition(look(api), "Progressing")["reason"] == "Retrying"
    assert condition(look(api))["message"].startswith(error.message)
    control.refusal = None
    keeper.keep(look(api))
    assert condition(look(api))["status"] == "True"


def test_the_same_refusal_after_an_attempt_is_said_again(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    control.refusal = InvalidInput("No.", remedy="Never.")
    keeper.keep(applied(api, app()))
    keeper.keep(look(api))
    assert condition(look(api))["reason"] == "InvalidInput"
    assert condition(look(api), "Progressing")["reason"] == "Refused"


# -- secrets -------------------------------------------------------------------------------------------------


def test_secrets_come_from_the_named_secret_and_only_those_asked_for(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    secret(api, HF_TOKEN="hf", OTHER="no")
    body = applied(api, app("shop", server(secrets=["HF_TOKEN"]), secretsFrom="keys"))
    keeper.keep(body)
    assert control.secrets["shop"] == {"HF_TOKEN": "hf"}
    assert "hf" not in str(look(api)["status"])
    keeper.keep(look(api))
    assert len(control.versions["shop"]) == 1
    secret(api, HF_TOKEN="newer")
    keeper.keep(look(api))
    assert control.secrets["shop"] == {"HF_TOKEN": "newer"}


def test_a_secret_that_is_missing_is_waited_for(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    body = applied(api, app("shop", server(secrets=["HF_TOKEN"]), secretsFrom="keys"))
    with pytest.raises(Retry, match="no Secret 'keys'"):
        keeper.keep(body)
    secret(api, OTHER="no")
    with pytest.raises(Retry, match="has no HF_TOKEN"):
        keeper.keep(body)
    assert not control.versions
    secret(api, HF_TOKEN="hf")
    keeper.keep(look(api))
    assert control.active()


# -- an operator that was killed, a control plane that forgot ------------------------------------------------


def test_an_operator_killed_while_it_deployed_finishes_it(
    api: FakeApi, control: FakeControl, keeper: AppKeeper, clock: ManualClock, counters: OperatorCounters
) -> None:
    body = applied(api, app())
    control.activate({"name": "shop", **body["spec"]})  # it was done, and nobody was told
    successor = AppKeeper(api, control, clock, counters)
    successor.keep(look(api), is_changed=False)
    assert len(control.versions["shop"]) == 1
    assert condition(look(api))["status"] == "True"


def test_an_app_that_the_control_plane_has_lost_is_deployed_again(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    control.versions.clear()
    keeper.refresh(api.list(APPS, NAMESPACE), control.deployments(), control.status().apps)
    assert look(api)["metadata"]["annotations"][REDEPLOY_ANNOTATION], "which the operator is told of"
    keeper.keep(look(api))
    assert control.active()


def test_a_rollback_by_hand_stays_and_is_shown_until_the_object_changes(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    by_hand = control.activate({"name": "shop", "servers": [server(port=7000)]})
    keeper.keep(look(api), is_changed=False)  # an operator that was restarted
    assert control.active() == [by_hand]
    assert condition(look(api))["reason"] == "Diverged"
    keeper.keep(applied(api, app("shop", server(port=9000))))
    assert control.active()[0].version == 3
    assert condition(look(api))["status"] == "True"


def test_an_operator_that_starts_while_the_control_plane_is_away_undoes_no_rollback_afterwards(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    by_hand = control.activate({"name": "shop", "servers": [server(port=7000)]})
    control.away = AWAY
    with pytest.raises(Retry):
        keeper.keep(look(api), is_changed=False)
    control.away = None
    keeper.keep(look(api), is_changed=False, attempt=1)
    assert control.active() == [by_hand]
    assert condition(look(api))["reason"] == "Diverged"


# -- how it is doing -----------------------------------------------------------------------------------------


def test_the_status_follows_what_runs(api: FakeApi, control: FakeControl, keeper: AppKeeper) -> None:
    keeper.keep(applied(api, app()))
    keeper.refresh(api.list(APPS, NAMESPACE), control.deployments(), control.status().apps)
    assert look(api)["status"]["replicas"] == "1 ready, 2 parked"
    failed = ErrorInfo(code="replica_failed", message="It exited with 1.", remedy="See its log.")
    control.change_active("shop", error=failed)
    keeper.refresh(api.list(APPS, NAMESPACE), control.deployments(), control.status().apps)
    assert condition(look(api))["reason"] == "StartFailed"
    assert condition(look(api))["message"] == "It exited with 1. See its log."


def test_the_time_of_a_condition_is_when_its_status_changed(
    api: FakeApi, control: FakeControl, keeper: AppKeeper, clock: ManualClock
) -> None:
    keeper.keep(applied(api, app()))
    since = condition(look(api))["lastTransitionTime"]
    clock.advance(60.0)
    keeper.keep(applied(api, app("shop", server(port=9000))))
    assert condition(look(api))["lastTransitionTime"] != since, "it was not ready in between"
    later = condition(look(api))["lastTransitionTime"]
    clock.advance(60.0)
    keeper.refresh(api.list(APPS, NAMESPACE), control.deployments(), control.status().apps)
    assert condition(look(api))["lastTransitionTime"] == later


def test_who_looked_before_a_change_says_nothing_after_it(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    stale = api.list(APPS, NAMESPACE)
    keeper.keep(applied(api, app("shop", server(port=9000))))
    before = look(api)["status"]
    keeper.refresh(stale, control.deployments(), control.status().apps)
    keeper.doubt(stale, "Away.")
    assert look(api)["status"] == before


def test_nobody_can_tell_while_the_control_plane_is_away(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    keeper.keep(applied(api, app()))
    keeper.doubt(api.list(APPS, NAMESPACE), str(AWAY))
    assert (condition(look(api))["status"], condition(look(api))["reason"]) == (
        "Unknown", "ControlPlaneUnavailable",
    )  # fmt: skip
    keeper.refresh(api.list(APPS, NAMESPACE), control.deployments(), control.status().apps)
    assert condition(look(api))["status"] == "True"


def test_a_status_that_somebody_broke_is_written_anew(
    api: FakeApi, control: FakeControl, keeper: AppKeeper
) -> None:
    api.put(APPS, {**app(), "status": {"conditions": [{"type": "Ready"}], "version": "x"}}, NAMESPACE)
    keeper.keep(look(api))
    assert condition(look(api))["status"] == "True"


# -- going ---------------------------------------------------------------------------------------------------


def deleted(api: FakeApi, at_s: float) -> dict[str, Any]:
    """As `kubectl delete` of an object with a finalizer."""
    change = {"metadata": {"deletionTimestamp": timestamp(at_s), "finalizers": ["glowplug.dev/undeploy"]}}
    return api.patch(APPS, "shop", change, NAMESPACE)


def test_a_deleted_app_is_undeployed_before_it_goes(
    api: FakeApi, control: FakeControl, keeper: AppKeeper, clock: ManualClock
) -> None:
    keeper.keep(applied(api, app()))
    keeper.let_go(deleted(api, clock.wall()))
    assert control.removed == ["shop"]
    keeper.let_go(deleted(api, clock.wall()))  # again, as after a kill in between
    assert control.removed == ["shop"]


def test_an_app_deleted_while_it_is_deployed_is_undeployed(
    api: FakeApi, control: FakeControl, keeper: AppKeeper, clock: ManualClock
) -> None:
    body = applied(api, app())
    control.gate.clear()
    working = threading.Thread(target=keeper.keep, args=(body,))
    working.start()
    eventually(lambda: condition(look(api), "Progressing"), "it is under way")
    told_of = deleted(api, clock.wall())  # nothing has been deployed yet, as far as this one says
    control.gate.set()
    working.join(60.0)
    keeper.let_go(told_of)
    assert control.removed == ["shop"]
    keeper.keep(look(api))
    assert not control.active(), "what goes is not deployed again"


def test_an_object_that_never_deployed_anything_undeploys_nothing(
    api: FakeApi, control: FakeControl, keeper: AppKeeper, clock: ManualClock
) -> None:
    control.activate({"name": "shop", "servers": [server()]})  # by `glowplug deploy`
    keeper.keep(applied(api, app("shop", server(), server())))  # refused
    keeper.let_go(deleted(api, clock.wall()))
    assert control.active()


def test_a_removed_glowplug_does_not_keep_an_app_for_ever(
    api: FakeApi,
    control: FakeControl,
    keeper: AppKeeper,
    clock: ManualClock,
    counters: OperatorCounters,
) -> None:
    keeper.keep(applied(api, app()))
    body = deleted(api, clock.wall())
    control.away = AWAY
    with pytest.raises(Retry):
        keeper.let_go(body)
    clock.advance(UNDEPLOY_DEADLINE_S)
    keeper.let_go(body)
    assert counters.registry.get_sample_value("glowplug_operator_abandoned_apps_total") == 1
