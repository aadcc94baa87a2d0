"""Errors: what happened, details, what to do; exit codes; as JSON when asked."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from glowplug.cli.output import print_error
from glowplug.engine.record import SupervisorRecord, supervision
from glowplug.types.errors import GlowplugError, ReplicaFailed, Unauthorized
from glowplug.types.paths import StateDir

from .conftest import Glowplug
from .fake_control import FakeControl


def test_an_error_says_what_happened_the_details_and_the_remedy(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.error = ReplicaFailed("It exited with code 1.", remedy="Read its log.", replica="chat-1", tries=2)
    result = glowplug("ps")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "Error: It exited with code 1.",
        "  replica: chat-1, tries: 2",
        "Remedy: Read its log.",
    ]


def test_an_error_as_json_is_the_apis_own(control: FakeControl, glowplug: Glowplug) -> None:
    control.error = Unauthorized("Wrong token.", remedy="Use the right one.", peer="10.0.0.1")
    result = glowplug("ps", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert json.loads(result.stderr) == control.error.to_dict()


def test_log_lines_in_details_are_shown_as_lines(control: FakeControl, glowplug: Glowplug) -> None:
    control.error = ReplicaFailed("It failed.", tail=["line one", "line two"], traceback="a\nb")
    assert glowplug("ps").stderr.splitlines() == [
        "Error: It failed.", "  | line one", "  | line two", "  | a", "  | b",
    ]  # fmt: skip


def test_not_running_names_glowplug_up(glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOWPLUG_URL")
    result = glowplug("ps")
    assert result.exit_code == 1
    assert "is not running" in result.stderr
    assert "`glowplug up`" in result.stderr


def test_nobody_listening_names_glowplug_up(glowplug: Glowplug) -> None:
    result = glowplug("--url", "http://127.0.0.1:9", "ps")
    assert result.exit_code == 1
    assert "Nothing answers at http://127.0.0.1:9." in result.stderr
    assert "`glowplug up`" in result.stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://[::1"])
def test_a_malformed_url_is_refused(glowplug: Glowplug, url: str) -> None:
    result = glowplug("--url", url, "ps")
    assert result.exit_code == 1
    assert "is not the address of a control plane" in result.stderr


def test_a_foreign_servers_error_page_is_explained(control: FakeControl, glowplug: Glowplug) -> None:
    control.raw_answer = Response("<html>nginx</html>", status_code=502)
    result = glowplug("ps")
    assert result.exit_code == 1
    assert "answered 502" in result.stderr


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"a": 1}', b'[{"id": 1}]', b"\xff"])
def test_an_answer_that_is_not_understood_is_explained(
    control: FakeControl, glowplug: Glowplug, body: bytes
) -> None:
    control.raw_answer = Response(body)
    result = glowplug("ps")
    assert result.exit_code == 1
    assert "cannot be understood" in result.stderr


@pytest.mark.parametrize("words", [["frobnicate"], ["ps", "--nope"], ["logs"], ["up", "--port", "99999"]])
def test_wrong_usage_has_exit_code_2(glowplug: Glowplug, words: list[str]) -> None:
    assert glowplug(*words).exit_code == 2


def test_the_token_is_an_option_or_from_the_environment(
    control: FakeControl, glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch
) -> None:
    glowplug("--token", "given", "deployments")
    monkeypatch.setenv("GLOWPLUG_TOKEN", "from-environment")
    glowplug("deployments")
    assert control.tokens == ["Bearer given", "Bearer from-environment"]


@pytest.fixture
def running_state(control: FakeControl, tmp_path: Path) -> Iterator[StateDir]:
    """A state directory whose supervisor says that the control plane is the fake one."""
    state = StateDir(tmp_path / "running")
    state.create()
    state.token.write_text("secret\n")
    port = int(control.url.rpartition(":")[2])
    record = SupervisorRecord(pid=os.getpid(), host="127.0.0.1", port=port, started_at=0)
    state.supervisor.write_text(record.model_dump_json())
    with supervision(state):
        yield state


def test_address_and_token_are_found_through_the_state_directory(
    control: FakeControl, glowplug: Glowplug, running_state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOWPLUG_URL")
    assert glowplug("--state", str(running_state.root), "deployments").exit_code == 0
    assert control.tokens == ["Bearer secret"]


def test_an_address_given_by_hand_does_not_get_the_state_directorys_token(
    control: FakeControl, glowplug: Glowplug, running_state: StateDir
) -> None:
    glowplug("--state", str(running_state.root), "--url", control.url, "deployments")
    assert control.tokens == [None]


details = st.dictionaries(
    st.text(min_size=1), st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text(), max_size=3))
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60, deadline=None)
@given(message=st.text(), remedy=st.text(), details=details)
def test_no_error_can_break_the_terminal(message: str, remedy: str, details: dict[str, object]) -> None:
    error = GlowplugError(message, remedy=remedy)
    error.details = details
    console = Console(record=True, file=open("/dev/null", "w"), force_terminal=False)  # noqa: SIM115, PTH123
    print_error(console, error)
    console.file.close()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", console.export_text())


def test_a_password_in_the_command_line_is_refused_and_not_repeated(glowplug: Glowplug) -> None:
    result = glowplug("up", "--database", "postgresql://me:very-secret@db/glowplug")
    assert result.exit_code == 1
    assert "PGPASSWORD" in result.stderr
    assert "very-secret" not in result.stderr + result.stdout
