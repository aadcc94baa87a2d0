"""One real agent per module; after every test nothing of its replicas may be left on the machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.live_agent import LiveAgent, live_agent
from tests.runtime.sandboxes import eventually

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
    eventually(lambda: not shared_agent.leftovers(), f"left: {shared_agent.leftovers()}", 20)


@pytest.fixture
def own_agent(fit_machine: None, root: Path) -> Iterator[LiveAgent]:
    """An agent that the test may kill."""
    with live_agent(root) as agent:
        yield agent
