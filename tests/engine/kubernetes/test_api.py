"""The API server over HTTP: kmock stands in for it. What goes wrong is one of our errors, with a remedy."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.engine.kubernetes.conftest import NAMESPACE, app
from tests.engine.kubernetes.mock_cluster import MockCluster
from tests.ports import free_port

from glowplug.engine.kubernetes.access import Access, find_access, from_kubeconfig
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import APPS, NODES
from glowplug.engine.kubernetes.operator import connection
from glowplug.types.errors import Conflict, InvalidInput, NotFound, Overloaded, Unauthorized, Unavailable


def test_objects_are_made_listed_changed_and_removed(cluster: MockCluster) -> None:
    writes: list[str] = []
    with KubernetesApi(cluster.access, on_write=writes.append) as api:
        api.create(APPS, app(), NAMESPACE)
        with pytest.raises(Conflict):
            api.create(APPS, app(), NAMESPACE)
        assert [one["metadata"]["name"] for one in api.list(APPS, NAMESPACE)] == ["shop"]
        api.patch(APPS, "shop", {"spec": {"secretsFrom": "keys"}}, NAMESPACE)
        api.patch(APPS, "shop", {"status": {"version": 1}}, NAMESPACE, subresource="status")
        found = api.get(APPS, "shop", NAMESPACE)
        assert (found["spec"]["secretsFrom"], found["status"]["version"]) == ("keys", 1)
        api.delete(APPS, "shop", NAMESPACE)
        api.delete(APPS, "shop", NAMESPACE)  # it is gone already: fine
        with pytest.raises(NotFound):
            api.get(APPS, "shop", NAMESPACE)
    assert writes == [APPS] * 6


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (403, Unauthorized), (404, NotFound), (409, Conflict), (410, Conflict),
     (422, InvalidInput), (429, Overloaded), (500, Unavailable), (503, Unavailable)],
)  # fmt: skip
def test_an_answer_that_is_an_error_is_one_of_ours(cluster: MockCluster, status: int, kind: Any) -> None:
    cluster.answer("get", "/api/v1/nodes/n1", status, {"message": "in its own words", "code": status})
    with KubernetesApi(cluster.access) as api, pytest.raises(kind) as caught:
        api.get(NODES, "n1")
    assert "in its own words" in caught.value.message
    assert caught.value.remedy


def test_an_api_server_that_is_not_there() -> None:
    with KubernetesApi(Access(f"http://127.0.0.1:{free_port()}")) as api, pytest.raises(Unavailable):
        api.list(NODES)


def test_what_is_no_api_server(cluster: MockCluster) -> None:
    cluster.answer("get", "/api/v1/nodes", 200, "hello")
    with KubernetesApi(cluster.access) as api, pytest.raises(Unavailable):
        api.list(NODES)


def test_lists_come_page_by_page(cluster: MockCluster) -> None:
    with KubernetesApi(cluster.access) as api:
        cluster.answer_pages("/api/v1/nodes", [["a", "b"], ["c"]])
        assert [one["metadata"]["name"] for one in api.list(NODES)] == ["a", "b", "c"]


# -- the way there -------------------------------------------------------------------------------------------


def test_a_pod_finds_its_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("serving")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = find_access(environment, tmp_path)
    assert (access.server, access.namespace) == ("https://[fd00::1]:443", "serving")
    assert access.bearer() == "first"
    (tmp_path / "token").write_text("renewed")
    assert access.bearer() == "renewed"
    assert connection(access).token == "renewed"
    (tmp_path / "token").unlink()
    with pytest.raises(NotFound):
        access.bearer()


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    file = folder / "config"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "serving"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_kubeconfig_names_a_token_or_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("AUTHORITY")
    data = base64.b64encode(b"CERTIFICATE").decode()
    user = {"token": "t", "client-certificate-data": data, "client-key": "ca.pem"}
    file = kubeconfig(tmp_path, user, **{"certificate-authority": "ca.pem"})
    access = find_access({"KUBECONFIG": str(file)})
    assert access == Access(
        "https://10.0.0.1:6443", "serving", authority="AUTHORITY", token="t", certificate="CERTIFICATE",
        private_key="AUTHORITY",
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="certificates"):
        access.tls()


@pytest.mark.parametrize(
    "text", ["", "[]", "current-context: nobody", "{", "current-context: x\ncontexts: 1"]
)
def test_what_is_no_kubeconfig_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(InvalidInput, match="no kubeconfig"):
        from_kubeconfig(tmp_path / "config")


def test_no_way_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NotFound, match="no way"):
        find_access({}, tmp_path)
    with pytest.raises(NotFound, match="no file"):
        find_access({"KUBECONFIG": str(tmp_path / "missing")})
