from __future__ import annotations

import io
import itertools

import chat
import demo
import pytest
from live_session import STATE_VARIABLE, LiveSession, server_sent_events
from rich.console import Console

from glowplug.types.errors import DeadlineExceeded, GlowplugError, Overloaded, RuntimeFailed, SnapshotInvalid

from .conftest import install_command


def run_demo(tmp_path, cycles=2):
    console = Console(file=io.StringIO(), width=100, highlighter=None)
    problems = demo.run(cycles, tmp_path / "out", console)
    return problems, console.file.getvalue()


def test_the_demo_shows_every_answer_both_waterfalls_figures_and_picture(command_calls, tmp_path):
    problems, shown = run_demo(tmp_path)
    assert problems == []
    assert (
        shown.count("The capital of France is Paris.") == 13
    )  # each of 6 as it streams and in the end; node 2
    assert "chat/vllm  cold  80.00 s" in shown
    assert shown.count("chat/vllm  cpu_snapshot  2.00 s") == 2  # each node's
    assert "chat/vllm  parked  0.03 s" in shown
    assert "Restored is faster by 40x at p50, 40x at p90, 40x at p99." in shown
    assert (tmp_path / "out" / "cdf.svg").stat().st_size > 0
    assert (tmp_path / "out" / "cdf.png").stat().st_size > 0


def test_the_demo_starts_deploys_and_stops_as_a_user_would(command_calls, tmp_path):
    run_demo(tmp_path)
    calls = command_calls.read_text().splitlines()
    deploy = calls[1]
    assert deploy.startswith("deploy ")
    assert deploy.endswith("examples/chat_vllm.py")
    here = ["up --port 0", deploy, "snapshot push sn-1", "down"]
    elsewhere = ["up --port 0", deploy, "down"]
    assert calls == [*here, *elsewhere]


def test_an_answer_that_differs_is_a_problem(stand_in, command_calls, tmp_path):
    stand_in.answers = itertools.chain(["The capital is Paris."], itertools.repeat("It is Paris."))
    problems, _shown = run_demo(tmp_path)
    assert len(problems) == 1
    assert "differ" in problems[0]


def test_a_wrong_answer_is_a_problem(stand_in, command_calls, tmp_path):
    stand_in.answers = itertools.repeat("The capital of France is Lyon.")
    problems, _shown = run_demo(tmp_path)
    assert any("are not vLLM's own" in problem for problem in problems)


def test_an_answer_of_the_other_node_that_differs_is_a_problem(stand_in, command_calls, tmp_path):
    here = itertools.repeat("The capital of France is Paris.", 6)
    stand_in.answers = itertools.chain(here, ["Paris is the capital of France."])
    problems, _shown = run_demo(tmp_path)
    assert len(problems) == 1
    assert "differ" in problems[0]


def test_never_restoring_is_a_problem_with_the_reason(stand_in, command_calls, tmp_path):
    stand_in.paths = itertools.repeat("cold")
    stand_in.fallback_reason = "the kernel changed"
    problems, shown = run_demo(tmp_path)
    assert any(
        "No start was a restore" in problem and "the kernel changed" in problem for problem in problems
    )
    assert "not restored: the kernel changed" in shown


def test_a_quarantined_snapshot_ends_the_wait_at_once(stand_in, command_calls, tmp_path):
    stand_in.snapshot_status = "quarantined"
    with pytest.raises(SnapshotInvalid, match="it answered differently"):
        run_demo(tmp_path)
    assert command_calls.read_text().splitlines()[-1] == "down"


def test_everything_is_stopped_when_the_user_has_had_enough(stand_in, command_calls, tmp_path):
    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt), LiveSession():
        next(interrupted())
    assert command_calls.read_text().splitlines() == ["up --port 0", "down"]


def test_a_failed_start_is_cleaned_up_and_says_what_the_command_said(stand_in, tmp_path, monkeypatch):
    calls = install_command(stand_in, tmp_path, monkeypatch, failing=("up",))
    with pytest.raises(RuntimeFailed, match="this command is broken"), LiveSession():
        pass
    assert calls.read_text().splitlines() == ["up --port 0", "down"]


def test_a_private_state_directory_is_removed_afterwards(stand_in, command_calls, monkeypatch):
    monkeypatch.delenv(STATE_VARIABLE)
    with LiveSession() as session:
        root = session.state.root
        assert root.exists()
    assert not root.exists()


def test_state_of_what_could_not_be_stopped_is_kept(stand_in, tmp_path, monkeypatch):
    install_command(stand_in, tmp_path, monkeypatch, failing=("down",))
    with pytest.raises(RuntimeFailed), LiveSession() as session:
        pass
    assert session.state.supervisor.exists()


def test_a_wait_that_runs_out_names_what_it_waited_for(stand_in, command_calls):
    with LiveSession() as session, pytest.raises(DeadlineExceeded, match="the moon"):
        session.wait(lambda: False, 0.0, "the moon")


def test_tokens_are_shown_as_they_come_and_timed(stand_in, command_calls):
    tokens = []
    with LiveSession() as session:
        answer = chat.ask(session.client, on_token=tokens.append)
    assert tokens == ["The", " capital", " of", " France", " is", " Paris."]
    assert answer.text == "".join(tokens)
    assert 0 < answer.first_token_s <= answer.total_s


def test_a_typed_error_keeps_its_words(stand_in, command_calls):
    stand_in.chat_error = (429, {"code": "overloaded", "message": "The queue is full.", "remedy": "Wait."})
    with LiveSession() as session, pytest.raises(Overloaded) as caught:
        chat.ask(session.client)
    assert caught.value.remedy == "Wait."


def test_another_programs_error_is_shown_as_it_is(stand_in, command_calls):
    stand_in.chat_error = (500, {"detail": "kaputt"})
    with LiveSession() as session, pytest.raises(GlowplugError, match="kaputt"):
        chat.ask(session.client)


def test_events_end_with_done():
    lines = ["data: 1", "", ": a comment", "data: 2", "data: [DONE]", "data: 3"]
    assert list(server_sent_events(iter(lines))) == ["1", "2"]
