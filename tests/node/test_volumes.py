"""Host folders as volumes: where one cannot be mounted, the error says why and the host is unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.node.live_agent import LiveAgent

pytestmark = pytest.mark.sandbox


def test_a_volume_that_is_not_there_fails_the_start_and_names_it(agent: LiveAgent, tmp_path: Path) -> None:
    missing = str(tmp_path / "weights")
    view = agent.fail(agent.server(volumes=[{"host_path": missing, "mount_path": "/weights"}]))
    assert view["error"]["code"] == "invalid_input"
    assert missing in view["error"]["message"]
    assert "volumes=" in view["error"]["remedy"]


def test_a_volume_is_never_mounted_where_that_would_create_a_folder_on_the_host(
    agent: LiveAgent, tmp_path: Path
) -> None:
    inside = "/usr/share/glowplug-test-volume"
    view = agent.fail(agent.server(volumes=[{"host_path": str(tmp_path), "mount_path": inside}]))
    assert view["error"]["code"] == "invalid_input"
    assert inside in view["error"]["message"]
    assert not Path(inside).exists()
