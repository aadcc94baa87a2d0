"""One real agent per module; after every test nothing of its replicas may be left on the machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.gpu_node import GpuNode, gpu_node, two_h100
from tests.node.live_agent import LiveAgent, live_agent
from tests.runtime.conftest import require_runc
from tests.runtime.sandboxes import eventually
from tests.snapshot.gpu.machine import build_driver

from glowplug.runtime.runsc import find_runsc
from glowplug.types.errors import SystemUnfit


@pytest.fixture(scope="session")
def fit_machine() -> None:
    """Skips where there is no root or no runsc."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        find_runsc()
    except SystemUnfit as error:
        pytest.skip(error.message)


@pytest.fixture
def root() -> Iterator[Path]:
    # Unix socket names are short: pytest's own temporary directories may be too deep.
    with tempfile.TemporaryDirectory(prefix="gpn-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shared_agent(fit_machine: None) -> Iterator[LiveAgent]:
    with tempfile.TemporaryDirectory(prefix="gpn-") as name, live_agent(Path(name)) as agent:
        yield agent


@pytest.fixture
def agent(shared_agent: LiveAgent) -> Iterator[LiveAgent]:
    """The module's agent, with nothing running before the test and nothing left after it."""
    yield shared_agent
    shared_agent.calm_down()
    eventually(lambda: not shared_agent.leftovers(), lambda: f"left: {shared_agent.leftovers()}", 120)


@pytest.fixture
def own_agent(fit_machine: None, root: Path) -> Iterator[LiveAgent]:
    """An agent that the test may kill."""
    with live_agent(root) as agent:
        yield agent


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake libcuda.so.1 and libnvidia-ml.so.1."""
    return build_driver(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(scope="module")
def shared_gpu_node(
    fit_machine: None, fake_driver: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuNode]:
    require_runc()
    machine = two_h100(tmp_path_factory.mktemp("machine") / "gpus", fake_driver)
    with (
        tempfile.TemporaryDirectory(prefix="gpn-") as name,
        gpu_node(Path(name), machine, fake_driver) as node,
    ):
        yield node


@pytest.fixture
def node(shared_gpu_node: GpuNode) -> Iterator[GpuNode]:
    """The module's GPU node, with nothing running before the test and nothing left after it."""
    yield shared_gpu_node
    shared_gpu_node.machine.heal()
    shared_gpu_node.calm_down()
    eventually(lambda: not shared_gpu_node.leftovers(), lambda: f"left: {shared_gpu_node.leftovers()}", 120)
    shared_gpu_node.no_device_memory_is_held()
