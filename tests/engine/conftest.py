"""A state directory of its own for each test, and real stand-ins for both children."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from glowplug.engine import embedded
from glowplug.engine.launch import Commands
from glowplug.types.paths import StateDir

HERE = Path(__file__).parent


def stand_ins(*, agent: tuple[str, ...] = (), control: tuple[str, ...] = ()) -> Commands:
    return Commands(
        agent=(sys.executable, str(HERE / "stand_in_agent.py"), *agent),
        control=(sys.executable, str(HERE / "stand_in_control.py"), *control),
    )


def eventually(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until ``condition`` holds; fail the test at the deadline."""
    deadline = monotonic() + timeout_s
    while not condition():
        assert monotonic() < deadline, "it did not come true in time"
        sleep(0.02)


@pytest.fixture
def state() -> Iterator[StateDir]:
    # Unix socket names are short: pytest's own temporary directories may be too deep.
    with tempfile.TemporaryDirectory(prefix="gp-") as directory:
        state = StateDir(Path(directory))
        yield state
        embedded.down(state, commands=stand_ins(), timeout_s=90)


@pytest.fixture
def ask_agent(state: StateDir) -> Iterator[httpx.Client]:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(state.agent_socket)), base_url="http://agent", timeout=60
    ) as client:
        yield client
