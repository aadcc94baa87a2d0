"""Every command has help, is documented, and completes the names that exist."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from glowplug.cli import completion
from glowplug.cli.main import app

from .conftest import Glowplug, deployment, replica, snapshot
from .fake_control import FakeControl

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "cli.md"


def commands() -> Iterator[tuple[str, Any]]:
    """All commands with their full names."""
    root: Any = get_command(app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", child) for inner, child in command.commands.items())
        else:
            yield name, command


NAMES = [name for name, _ in commands()]


@pytest.mark.parametrize("wanted", [
    "up", "down", "deploy", "run", "ps", "logs", "exec", "shell", "stop", "rollback", "coldstarts", "costs",
    "doctor", "status", "snapshot ls", "snapshot show", "snapshot verify", "snapshot create", "snapshot rm",
    "image ls", "image build", "image inspect", "image rm", "image import", "image push", "image pull",
    "image prefetch", "image mount", "image unmount", "image verify", "image gc", "image diff",
    "recipes", "gpu ls", "gpu check", "pool plan", "pool prices", "pool run",
    "pool simulate", "pool status", "pool explain",
    "explain", "cluster up", "cluster down", "cluster token", "cluster join", "cluster status",
    "cluster drain", "cluster remove", "cluster operator",
    "zone-cache up", "zone-cache down", "zone-cache status",
])  # fmt: skip
def test_the_command_exists(wanted: str) -> None:
    assert wanted in NAMES


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=NAMES)
def test_the_command_and_all_its_parameters_have_help(name: str, command: Any) -> None:
    assert command.help
    missing = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert missing == []


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=NAMES)
def test_the_command_and_all_its_options_are_documented(name: str, command: Any) -> None:
    section = re.search(rf"^### `glowplug {name}\b(.*?)(?=^##|\Z)", DOCUMENTATION.read_text(), re.M | re.S)
    assert section, f"docs/cli.md has no section for {name}"
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert option in section[1], f"{option} of {name} is not documented"


@pytest.mark.parametrize("name", NAMES)
def test_help_can_be_shown(glowplug: Glowplug, name: str) -> None:
    result = glowplug(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_documentation_names_no_command_that_does_not_exist() -> None:
    documented = re.findall(r"^### `glowplug ([a-z -]+)`", DOCUMENTATION.read_text(), re.M)
    assert sorted(documented) == sorted(NAMES)


@pytest.mark.parametrize(
    ("words", "suggestions"),
    [
        ("glowplug logs ", {"chat", "chat/vllm", "chat-vllm-aaaaaa"}),
        ("glowplug logs chat-", {"chat-vllm-aaaaaa"}),
        ("glowplug rollback ", {"chat"}),
        ("glowplug snapshot rm s", {"sn-1"}),
        ("glowplug snapshot create chat/", {"chat/vllm"}),
        ("glowplug image rm ", {"im-1"}),
    ],
)
def test_names_are_completed(
    control: FakeControl,
    glowplug: Glowplug,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    suggestions: set[str],
) -> None:
    monkeypatch.setattr(completion, "_TIMEOUT_S", 60.0)
    control.replicas, control.snapshots = [replica()], [snapshot()]
    control.deployments = [deployment(), deployment(app="old", active=False)]
    control.images = [{"id": "im-1", "kind": "directory", "spec": {"kind": "directory", "path": "/"}}]
    assert complete(glowplug, words) == suggestions


def test_completion_is_silent_when_nothing_runs(glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOWPLUG_URL")
    assert complete(glowplug, "glowplug logs ") == set()


def test_completion_gives_up_on_a_control_plane_that_hangs(
    glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("GLOWPLUG_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert complete(glowplug, "glowplug logs ") == set()


def complete(glowplug: Glowplug, words: str) -> set[str]:
    environment = {
        "_GLOWPLUG_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = glowplug(env=environment, prog_name="glowplug")
    return set(result.stdout.split())
