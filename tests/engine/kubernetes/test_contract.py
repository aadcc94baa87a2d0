"""The engine ``kubernetes`` against the contract of engines, on an API server in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.contract import EngineContract
from tests.engine.kubernetes.conftest import NAMESPACE
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.kubernetes_site import OnKubernetes, kubernetes_site

from glowplug.engine.kubernetes.names import AGENT, COMPONENT_LABEL, DAEMON_SETS


@pytest.fixture(scope="module")
def made() -> Iterator[OnKubernetes]:
    api = FakeApi()
    labels = {COMPONENT_LABEL: AGENT}
    api.put(DAEMON_SETS, {"metadata": {"name": "gp-agent", "labels": labels}}, NAMESPACE)
    with kubernetes_site(api, api) as site:
        yield site


@pytest.fixture
def site(made: OnKubernetes) -> Iterator[OnKubernetes]:
    yield made
    made.heal()


class TestKubernetesEngine(EngineContract):
    """All of the contract."""
