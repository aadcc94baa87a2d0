"""``cluster operator`` from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.engine.kubernetes.conftest import NAMESPACE, app
from tests.engine.kubernetes.mock_cluster import MockCluster
from typer.testing import CliRunner

from glowplug.cli.main import app as command_line
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import APPS, FINALIZER


def test_apps_are_let_go_by_the_hook_of_the_chart(
    cluster: MockCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KubernetesApi(cluster.access) as api:
        body = app()
        body["metadata"]["finalizers"] = [FINALIZER]
        api.create(APPS, body, NAMESPACE)
        file = tmp_path / "config"
        file.write_text(
            "{current-context: x, contexts: [{name: x, context: {cluster: x, user: x}}], "
            f"clusters: [{{name: x, cluster: {{server: '{cluster.access.server}'}}}}], "
            "users: [{name: x, user: {}}]}"
        )
        monkeypatch.setenv("KUBECONFIG", str(file))
        result = CliRunner().invoke(
            command_line, ["cluster", "operator", "--forget", "--namespace", NAMESPACE]
        )
        assert result.exit_code == 0, result.output
        assert "shop" in result.stderr
        assert not api.get(APPS, "shop", NAMESPACE)["metadata"].get("finalizers")


def test_without_a_cluster_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(command_line, ["cluster", "operator"])
    assert result.exit_code == 1
    assert "KUBECONFIG" in result.stderr


def test_without_kopf_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kopf", None)
    monkeypatch.delitem(sys.modules, "glowplug.engine.kubernetes.operator", raising=False)
    monkeypatch.delattr("glowplug.engine.kubernetes.operator", raising=False)
    result = CliRunner().invoke(command_line, ["cluster", "operator"])
    assert result.exit_code == 1
    assert "extra `kubernetes`" in result.stderr


def test_help_loads_nothing_heavy() -> None:
    import subprocess

    code = "import sys, glowplug.cli.main; print([m for m in ('kopf', 'kmock', 'yaml') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
