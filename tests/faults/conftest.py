"""A running Glowplug whose container runtimes have a stand-in that kills on command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.live import Live
from tests.faults.shim import Shim
from tests.runtime.conftest import require_runc


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    require_runc()
    return Shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def live(shim: Shim) -> Iterator[Live]:
    with Live(**shim.environment) as live:
        yield live


@pytest.fixture
def apps(live: Live, tmp_path: Path) -> Iterator[Apps]:
    apps = Apps(live, tmp_path)
    yield apps
    live.remove(apps.names)
