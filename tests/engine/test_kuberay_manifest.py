"""``deploy/kuberay/raycluster.yaml``: it says what Glowplug relies on, in words that this version knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from glowplug.cli.main import app
from glowplug.engine.ray.settings import DEFAULT_GATEWAY_PORT, DEFAULT_RAY_PORT
from glowplug.types.paths import DEFAULT_STATE_DIR

MANIFEST = Path(__file__).parents[2] / "deploy" / "kuberay" / "raycluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    documents = {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}
    assert documents["RayCluster"]["apiVersion"] == "ray.io/v1"
    (served,) = documents["Service"]["spec"]["ports"]
    claim = documents["PersistentVolumeClaim"]["metadata"]["name"]
    spec: dict[str, Any] = documents["RayCluster"]["spec"]
    for group in spec["workerGroupSpecs"]:
        ports = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
        assert served["targetPort"] in ports
    (volume,) = spec["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert documents["RayCluster"]["metadata"]["name"] == "glowplug"
    return spec


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def test_ray_wants_a_token(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_head_starts_glowplug_with_options_that_this_version_has(cluster: dict[str, Any]) -> None:
    head = container(cluster["headGroupSpec"])
    command = head["lifecycle"]["postStart"]["exec"]["command"]
    assert command[:3] == ["glowplug", "cluster", "up"]
    known = typer.main.get_command(app).commands["cluster"].commands["up"]  # type: ignore[attr-defined]
    with known.make_context("up", list(command[3:]), resilient_parsing=False) as context:
        given = context.params
    assert (str(given["engine"]), given["address"]) == ("ray", "auto")
    assert given["advertise"] == "glowplug-head-svc", "KubeRay's service of a cluster of this name"
    ports = {port["containerPort"] for port in head["ports"]}
    assert {DEFAULT_RAY_PORT, 8080} <= ports
    routers = int(given["serve"].rpartition(":")[2])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        named = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
        assert group["rayStartParams"]["metrics-export-port"] == str(named["metrics"])
        assert named["metrics"] not in (8080, routers), "KubeRay's own default is Glowplug's port"
        assert group is cluster["headGroupSpec"] or named["router"] == routers


def test_every_worker_may_do_what_an_agent_does_and_is_chosen(cluster: dict[str, Any]) -> None:
    command = container(cluster["headGroupSpec"])["lifecycle"]["postStart"]["exec"]["command"]
    (only,) = [word.removeprefix("--only=") for word in command if word.startswith("--only=")]
    name, _, value = only.partition("=")
    for group in cluster["workerGroupSpecs"]:
        assert group["labels"][name] == value
        worker = container(group)
        assert worker["image"] == container(cluster["headGroupSpec"])["image"]
        assert worker["securityContext"] == {"runAsUser": 0, "privileged": True}
        assert DEFAULT_GATEWAY_PORT in {port["containerPort"] for port in worker["ports"]}
        assert str(DEFAULT_STATE_DIR) in {mount["mountPath"] for mount in worker["volumeMounts"]}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["template"]["spec"]["affinity"]["podAntiAffinity"], "one agent on a machine"
