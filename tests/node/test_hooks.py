"""Copies of one snapshot differ where they must: what `glowplug.hooks` and our runner do in each of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.engines import ENGINE, require_engine
from tests.node.cases import captured, case_server, served_class
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import require_runc

pytestmark = pytest.mark.sandbox

COPIES = 8


@pytest.fixture(params=["runsc", "runc"], autouse=True)
def runtime(request: pytest.FixtureRequest, agent: LiveAgent) -> str:
    if request.param == "runc":
        require_runc()
    agent.runtime = request.param
    return str(request.param)


def plain(agent: LiveAgent, name: str, **changes: Any) -> Any:
    return case_server(agent, name, command=["python3", "/servers/fresh.py"], secrets=["TOKEN"], **changes)


def copies(agent: LiveAgent, server: Any, **changes: Any) -> list[dict[str, Any]]:
    """The snapshot's trial is no copy that anybody sees: these are, all started at once."""
    captured(agent, server, secrets={"TOKEN": "token-of-the-first"}, **changes)
    begun = [agent.begin(server, secrets={"TOKEN": f"token-number-{n}"}, **changes) for n in range(COPIES)]
    views = [agent.settled(one) for one in begun]
    assert [view["path"] for view in views] == ["cpu_snapshot"] * COPIES, views
    return views


def all_differ(drawn: list[dict[str, Any]]) -> None:
    for source in drawn[0]:
        assert len({one[source] for one in drawn}) == len(drawn), f"{source} is the same in several copies"


def clocks_go_on(answers: list[dict[str, Any]]) -> None:
    """Wall time is now; monotonic time went neither back, nor further than the wall's."""
    for answer in answers:
        loaded_at, loaded_monotonic = answer["loaded"]
        assert abs(time.time() - answer["time"]) < 60
        passed_s = answer["time"] - loaded_at
        assert 0 <= answer["monotonic"] - loaded_monotonic <= passed_s + 1


def test_eight_copies_of_a_plain_command_differ_in_whatever_is_random(agent: LiveAgent) -> None:
    views = copies(agent, plain(agent, "fresh"))
    answers = [dict(agent.ask(view)) for view in views]
    all_differ([answer["drawn"] for answer in answers] + [answer["child"] for answer in answers])
    for number, answer in enumerate(answers):
        assert answer["name"] == views[number]["id"]
        assert answer["resolves"] == "127.0.0.1"
        assert answer["done"] == [
            "last registered, first run",
            "first registered, last run",
            f"restored with token-number-{number}",
        ]
    clocks_go_on(answers)


def test_eight_copies_of_a_class_differ_in_whatever_is_random(agent: LiveAgent) -> None:
    server = served_class(
        agent,
        "fresh.py",
        "Fresh",
        name=f"fresh-cls-{agent.runtime}",
        secrets=["TOKEN"],
    )
    views = copies(agent, server)
    answers = [dict(agent.ask(view, "/look", body={})["result"]) for view in views]
    all_differ([answer["drawn"] for answer in answers])
    assert [answer["hostname"] for answer in answers] == [view["id"] for view in views]
    assert [answer["token"] for answer in answers] == [f"token-number-{n}" for n in range(COPIES)]
    clocks_go_on(answers)


# What gVisor's copies draw, the others show; torch is imported there for a third of a minute.
@pytest.mark.engine
@pytest.mark.parametrize("runtime", [pytest.param("runsc", marks=pytest.mark.nightly), "runc"], indirect=True)
def test_eight_copies_differ_in_numpy_and_torch_too(agent: LiveAgent) -> None:
    require_engine()
    image = {**agent.image, "venv": str(ENGINE)}
    server = plain(agent, "torch", image=image, resources={"memory_bytes": 1 << 30}, startup_timeout_s=120)
    views = copies(agent, server, image_id=agent.build(image))
    answers = [dict(agent.ask(view)) for view in views]
    assert "own torch" in answers[0]["drawn"]
    all_differ([answer["drawn"] for answer in answers] + [answer["child"] for answer in answers])


def test_a_hook_that_fails_in_a_copy_is_a_cold_start_that_shows_its_traceback(
    agent: LiveAgent, tmp_path: Path
) -> None:
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = plain(agent, "fresh-broken", volumes=[volume])
    captured(agent, server)
    (tmp_path / "broken").touch()
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "glowplug.hooks.after_restore" in view["fallback_reason"]
    assert "ConnectionError: the database is gone" in view["fallback_reason"]
