"""The chart, rendered by Helm's own library and checked against the API's own schemas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from tests.engine.kubernetes.conftest import NAMESPACE

from glowplug.cli.main import app as command_line
from glowplug.engine.kubernetes import names
from glowplug.engine.kubernetes.crds import definitions
from glowplug.engine.kubernetes.handover import CONTROL

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "glowplug"
EXAMPLE = Path(__file__).parents[3] / "examples" / "kubernetes" / "app.yaml"
NEEDED: dict[str, Any] = {"control": {"database": {"existingSecret": "db"}}}
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/glowplug", "tag": "2"},
    "imagePullSecrets": [{"name": "pull"}],
    "control": {
        "replicas": 3, "database": {"existingSecret": "db"}, "token": {"existingSecret": "mine"},
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
        "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}],
    },
    "operator": {"appSecrets": ["keys"], "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]},
    "agent": {
        "nodeSelector": {"gpu": "yes"}, "tolerations": [{"operator": "Exists"}], "runtimeClassName": "nvidia",
        "priorityClassName": "system-node-critical", "env": {"GLOWPLUG_REGION": "s3://bucket/glowplug"},
        "envFrom": [{"secretRef": {"name": "cloud"}}],
        "router": {
            "port": 9080, "hostPort": 80,
            "service": {
                "type": "LoadBalancer", "port": 80, "annotations": {"a": "b"},
                "internalTrafficPolicy": "Local",
            },
        },
    },
    "networkPolicy": {"callers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
}  # fmt: skip
WARNING = 2
NEWEST = kubernetes_validate.latest_version()


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="gp", namespace=NAMESPACE)
    return [
        document
        for name, text in files.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Any]]:
    return render(NEEDED)


@pytest.fixture(scope="module")
def full() -> list[dict[str, Any]]:
    return render(EVERYTHING)


def one(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pod_of(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = one(documents, kind, name)["spec"]["template"]["spec"]
    return spec


def test_everything_is_as_the_newest_api_says(
    plain: list[dict[str, Any]], full: list[dict[str, Any]]
) -> None:
    crds = [yaml.safe_load(file.read_text()) for file in (CHART / "crds").glob("*.yaml")]
    assert len(plain) > 20
    for document in [*plain, *full, *crds]:
        kubernetes_validate.validate(document, NEWEST, strict=True)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"control": {"database": {"existingSecret": ""}}},
        {**NEEDED, "agnet": {}},
        {"control": {**NEEDED["control"], "replicas": 0}},
        {**NEEDED, "agent": {"stateDir": "relative"}},
        {**NEEDED, "agent": {"env": {"A": 1}}},
        {**NEEDED, "agent": {"router": {"port": 0}}},
        {**NEEDED, "agent": {"router": {"service": {"internalTrafficPolicy": "local"}}}},
        {**NEEDED, "networkPolicy": {"callers": "all"}},
    ],
)
def test_values_that_are_wrong_are_refused(values: dict[str, Any]) -> None:
    with helm_python.Chart.load(str(CHART)) as chart, pytest.raises(helm_python.HelmError):
        chart.validate_schema(chart.merge_values(values))


def test_helm_has_nothing_to_say_against_it() -> None:
    report = helm_python.lint(str(CHART), NEEDED)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] >= WARNING] == []


# -- what the chart and the code must agree about ------------------------------------------------------------


def test_names_are_those_that_the_operator_looks_for(plain: list[dict[str, Any]]) -> None:
    control = one(plain, "Deployment", "gp-control")["spec"]["template"]["metadata"]["labels"]
    assert control[names.COMPONENT_LABEL] == CONTROL
    daemon_set = one(plain, "DaemonSet", "gp-agent")
    assert daemon_set["metadata"]["labels"][names.COMPONENT_LABEL] == names.AGENT
    assert daemon_set["spec"]["template"]["metadata"]["labels"][names.COMPONENT_LABEL] == names.AGENT
    (term,) = daemon_set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": names.RELEASED_LABEL, "operator": "DoesNotExist"}]


def test_the_commands_exist(plain: list[dict[str, Any]]) -> None:
    from tests.cli.test_commands import commands

    from glowplug.control.__main__ import main as control_main

    (operator,) = pod_of(plain, "Deployment", "gp-operator")["containers"]
    assert operator["command"][:3] == ["glowplug", "cluster", "operator"]
    known = {option for name, command in commands() if name == "cluster operator" for p in command.params
             for option in p.opts}  # fmt: skip
    assert {word.partition("=")[0] for word in operator["command"][3:]} <= known
    (forget,) = pod_of(plain, "Job", "gp-forget")["containers"]
    assert {word.partition("=")[0] for word in forget["command"][3:]} <= known
    (control,) = pod_of(plain, "Deployment", "gp-control")["containers"]
    assert control["command"][:3] == ["python", "-m", "glowplug.control"]
    with pytest.raises(SystemExit) as help_shown:
        control_main([*control["command"][3:], "--help"])
    assert help_shown.value.code == 0
    assert command_line is not None


def test_only_the_agent_has_privileges(plain: list[dict[str, Any]]) -> None:
    agent = pod_of(plain, "DaemonSet", "gp-agent")
    assert agent["containers"][0]["securityContext"] == {"privileged": True}
    assert (agent["hostPID"], agent["hostNetwork"]) == (False, False)
    for kind, name in (("Deployment", "gp-control"), ("Deployment", "gp-operator"), ("Job", "gp-forget")):
        spec = pod_of(plain, kind, name)
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod_of(plain, "Deployment", "gp-control")["automountServiceAccountToken"] is False


def test_rights_are_the_fewest(plain: list[dict[str, Any]], full: list[dict[str, Any]]) -> None:
    rules = {rule["resources"][0]: rule for rule in one(plain, "Role", "gp-operator")["rules"]}
    assert rules["secrets"]["resourceNames"] == ["gp-join"], "no other Secret can be read"
    named = [rule for rule in one(full, "Role", "gp-operator")["rules"] if rule["resources"] == ["secrets"]]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in named] == [
        (["gp-join"], ["get", "patch"]), (["keys"], ["get"]),
    ]  # fmt: skip
    for document in plain:
        for rule in document.get("rules", []):
            assert "*" not in [*rule["resources"], *rule["verbs"], *rule["apiGroups"]]
    nodes = one(plain, "ClusterRole", f"gp-{NAMESPACE}-agent")["rules"]
    assert nodes == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]


def test_the_database_and_the_tokens_come_from_secrets_only(full: list[dict[str, Any]]) -> None:
    (control,) = pod_of(full, "Deployment", "gp-control")["containers"]
    (url,) = [one for one in control["env"] if one["name"] == "GLOWPLUG_DATABASE_URL"]
    assert url["valueFrom"]["secretKeyRef"] == {"name": "db", "key": "url"}
    (operator,) = pod_of(full, "Deployment", "gp-operator")["containers"]
    (token,) = [one for one in operator["env"] if one["name"] == "GLOWPLUG_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["name"] == "mine"
    secrets = [document["metadata"]["name"] for document in full if document["kind"] == "Secret"]
    assert secrets == ["gp-join"], "no token is made where one is named"


def test_the_service_leads_to_the_leader_only(plain: list[dict[str, Any]]) -> None:
    (control,) = pod_of(plain, "Deployment", "gp-control")["containers"]
    assert control["readinessProbe"]["httpGet"]["path"] == "/healthz?leader"
    assert control["startupProbe"]["httpGet"]["path"] == "/healthz"


# -- routers -------------------------------------------------------------------------------------------------


def policy_for(documents: list[dict[str, Any]], port: str) -> list[dict[str, Any]]:
    """Who may come to this port of an agent."""
    rules = one(documents, "NetworkPolicy", "gp-agent")["spec"]["ingress"]
    return [peer for rule in rules if rule["ports"] == [{"port": port}] for peer in rule["from"]]


def test_every_machine_has_a_router_and_a_service_leads_to_all(
    plain: list[dict[str, Any]], full: list[dict[str, Any]]
) -> None:
    for documents, port, host_port in ((plain, 8080, None), (full, 9080, 80)):
        (agent,) = pod_of(documents, "DaemonSet", "gp-agent")["containers"]
        ports = {found["name"]: found for found in agent["ports"]}
        assert (ports["router"]["containerPort"], ports["router"].get("hostPort")) == (port, host_port)
        assert {"name": "GLOWPLUG_SERVE", "value": f"0.0.0.0:{port}"} in agent["env"]
        service = one(documents, "Service", "gp-router")["spec"]
        labels = one(documents, "DaemonSet", "gp-agent")["spec"]["template"]["metadata"]["labels"]
        assert service["selector"].items() <= labels.items()
        assert service["ports"][0]["targetPort"] == "router"
    assert "internalTrafficPolicy" not in one(plain, "Service", "gp-router")["spec"]
    assert one(full, "Service", "gp-router")["spec"]["internalTrafficPolicy"] == "Local"


def test_callers_reach_routers_and_routers_reach_other_machines_gateways(
    plain: list[dict[str, Any]], full: list[dict[str, Any]]
) -> None:
    assert policy_for(plain, "router") == [{"namespaceSelector": {}}]
    assert policy_for(full, "router") == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    components = [
        peer["podSelector"]["matchLabels"][names.COMPONENT_LABEL] for peer in policy_for(plain, "gateway")
    ]
    assert components == ["control", "agent"]
    nobody = render({**NEEDED, "networkPolicy": {"callers": []}})
    assert policy_for(nobody, "router") == [], "nobody is not everybody"


def test_machines_need_not_have_a_router() -> None:
    without = render({**NEEDED, "agent": {"router": {"enabled": False}}})
    assert "gp-router" not in [document["metadata"]["name"] for document in without]
    (agent,) = pod_of(without, "DaemonSet", "gp-agent")["containers"]
    assert {"name": "GLOWPLUG_SERVE", "value": "off"} in agent["env"]
    assert [port["name"] for port in agent["ports"]] == ["gateway"]
    assert policy_for(without, "router") == []


# -- the example ---------------------------------------------------------------------------------------------


def test_the_example_of_values_is_taken_by_the_chart() -> None:
    documents = render(yaml.safe_load((EXAMPLE.parent / "values.yaml").read_text()))
    assert one(documents, "Service", "gp-router")["spec"]["type"] == "LoadBalancer"
    for document in documents:
        kubernetes_validate.validate(document, NEWEST, strict=True)


def test_the_example_is_one(plain: list[dict[str, Any]]) -> None:
    from openapi_schema_validator import OAS30Validator

    from glowplug.engine.kubernetes.app_object import FoundApp

    documents = list(yaml.safe_load_all(EXAMPLE.read_text()))
    crds = {crd["spec"]["names"]["kind"]: crd for crd in definitions().values()}
    for document in documents:
        assert document["apiVersion"] == names.API_VERSION
        schema = copy.deepcopy(crds[document["kind"]]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        assert [error.message for error in OAS30Validator(schema).iter_errors(document)] == []
        if document["kind"] == "App":
            FoundApp.of(document).wanted()
    assert {document["kind"] for document in documents} == {"App", "Pool"}
