"""What only the agent and runc together can show: the rest runs for both runtimes in the other modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.node.cases import captured, case_server
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import require_runc
from tests.runtime.sandboxes import eventually
from tests.snapshot.kept_files import flip_a_bit

from glowplug.node import page_merging

pytestmark = pytest.mark.sandbox


@pytest.fixture(autouse=True)
def _in_runc(agent: LiveAgent) -> None:
    require_runc()
    agent.runtime = "runc"


@pytest.mark.parametrize(
    "file",
    [
        "pages-1.img",
        "files.tar",
        *(
            pytest.param(file, marks=pytest.mark.nightly)
            for file in ("core-1.img", "mm-1.img", "pagemap-1.img", "pstree.img", "runc.json")
        ),
    ],
)
def test_a_flipped_bit_is_noticed_quarantined_and_captured_anew(agent: LiveAgent, file: str) -> None:
    server = case_server(agent, f"flipped-{file.partition('.')[0]}")
    snapshot = captured(agent, server)
    flip_a_bit(agent.state, snapshot["id"], file)
    view = agent.start(server)
    assert view["path"] == "cold"
    assert f"{file} was altered" in view["fallback_reason"]
    assert agent.ask(view) == "hello"
    assert eventually(lambda: agent.captured(view)["created_at"] > snapshot["created_at"])
    assert agent.captured(view)["status"] == "good"
    # Three different ones that failed in a row would be the node's fault, which would capture nothing more.
    assert agent.start(server)["path"] == "cpu_snapshot"


def test_a_copy_starts_with_its_own_name_and_a_snapshot_names_both_programs(agent: LiveAgent) -> None:
    server = case_server(agent, "own-name")
    snapshot = captured(agent, server)
    assert snapshot["key_fields"]["runtime"].startswith("runc ")
    assert " criu 4" in snapshot["key_fields"]["runtime"]
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    assert agent.ask(view, "/state")["hostname"] == view["id"]


def test_another_runtime_finds_no_snapshot_and_says_why(agent: LiveAgent) -> None:
    server = case_server(agent, "changed-its-mind")
    captured(agent, server)
    view = agent.start({**server, "runtime": "runsc"})
    assert view["path"] == "cold"
    assert "runtime is runsc" in view["fallback_reason"]
    assert "was runc" in view["fallback_reason"]


@pytest.mark.usefixtures("no_swap")
def test_a_server_out_of_memory_is_told_so(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    agent.ask_and_lose(view, "/hold?mib=200")
    failed = agent.until(view["id"], "failed")
    assert "memory" in failed["error"]["message"]


def test_exit_code_and_last_words_of_a_server_that_ends(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    agent.ask_and_lose(view, "/exit?code=7")
    failed = agent.until(view["id"], "failed")
    assert failed["exit_code"] == 7
    assert "asked to exit with 7" in str(failed["error"])


def test_a_killed_agents_successor_adopts_what_runs_and_removes_what_was_half_made(
    own_agent: LiveAgent,
) -> None:
    require_runc()
    own_agent.runtime = "runc"
    view = own_agent.start(own_agent.server())
    half = own_agent.begin(own_agent.server(env={"SLOW_S": "60"}))
    own_agent.until(half, "starting")
    eventually(lambda: own_agent.view(half)["pid"], "it has been created")
    own_agent.kill()
    own_agent.start_again()
    adopted: dict[str, Any] = own_agent.until(view["id"], "ready")
    assert (adopted["pid"], adopted["runtime"]) == (view["pid"], "runc")
    assert own_agent.ask(adopted) == "hello"
    assert not (own_agent.state.runc_root / "sandboxes" / half).exists()
    assert own_agent.stop(view["id"])["state"] == "stopped"


def test_a_node_without_criu_says_what_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_runc()
    monkeypatch.setenv("GLOWPLUG_CRIU", "/nowhere/criu")
    agent = LiveAgent(root)
    try:
        answer = agent.post(agent.server(runtime="runc"))
        assert answer.status_code == 500
        assert "CRIU" in answer.json()["message"]
        assert agent.start(agent.server(trusted=True))["runtime"] == "runsc"
    finally:
        agent.close()


def test_copies_of_a_trusted_server_share_equal_pages_and_those_of_others_do_not(agent: LiveAgent) -> None:
    if not page_merging.is_possible():
        pytest.skip("this kernel merges no pages")
    server = case_server(agent, "shared-pages")
    captured(agent, server)
    apart = agent.start(server)
    copies = [agent.start({**server, "trusted": True}) for _ in range(2)]

    def are_shared() -> bool:
        own_bytes = agent.view(apart["id"])["proportional_bytes"]
        views = [agent.view(copy["id"]) for copy in copies]
        return all(view["proportional_bytes"] < 0.8 * own_bytes for view in views)

    eventually(are_shared, "the copies share pages", timeout_s=120)
    assert [agent.ask(copy) for copy in [apart, *copies]] == ["hello"] * 3
