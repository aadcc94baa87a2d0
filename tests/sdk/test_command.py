"""A bare command becomes an app, with as much guessed as the command itself says."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glowplug as gp
from glowplug.sdk.command import guess_name, guess_port
from glowplug.sdk.loader import server_from_command
from glowplug.types.errors import InvalidInput
from glowplug.types.ids import check_name
from glowplug.types.spec import HostPythonImage

from .conftest import only_server, patient, validated


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("vllm serve /m --port 9000", 9000),
        ("vllm serve /m --port=9001 --x", 9001),
        ("serve -p 9002", 9002),
        ("serve --port 1 --port 2", 2),
        ("python -m http.server 8123", 8123),
        ("python -m http.server", 8000),
        ("serve --port many", 8000),
        ("serve 70000", 8000),
        ("serve --port", 8000),
        ("9000", 8000),
        ("serve ٣٤٥٦", 8000),
    ],
)
def test_the_port_is_what_the_command_says(command: str, port: int) -> None:
    assert guess_port(command.split()) == port


@patient
@given(command=st.lists(st.text(), min_size=1, max_size=3))
def test_any_command_has_a_name_and_a_port(command: list[str]) -> None:
    check_name(guess_name(command), "App")
    assert 1 <= guess_port(command) <= 65535


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python -m http.server 8000", "http-server"),
        ("python3.11 my_server.py", "my-server"),
        ("/opt/venv/bin/vllm serve", "vllm"),
        ("python -c pass", "python"),
        ("api", "api-app"),
    ],
)
def test_the_app_is_named_after_what_runs(command: str, name: str) -> None:
    assert guess_name(command.split()) == name


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real virtual environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    return folder


def test_a_program_of_a_virtual_environment_brings_it_along(environment: Path) -> None:
    server = only_server(server_from_command([f"{environment}/bin/python", "-m", "http.server"]))
    assert isinstance(server.image, HostPythonImage)
    assert server.image.venv == str(environment)
    assert server.command[0] == f"{environment}/bin/python"


def test_a_program_on_the_path_is_looked_up(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{environment}/bin:/usr/bin")
    server = only_server(server_from_command(["python", "-m", "http.server", "8123"]))
    assert isinstance(server.image, HostPythonImage)
    assert server.image.venv == str(environment)
    assert (server.command[0], server.port, server.ready.path) == ("python", 8123, "/")


def test_a_system_program_runs_in_the_system_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    server = only_server(server_from_command(["env", "true"]))
    assert isinstance(server.image, HostPythonImage)
    assert (server.image.venv, server.command) == (None, ["env", "true"])


def test_python_means_the_systems_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only_server(server_from_command(["python", "-m", "http.server"])).command[0] == "python3"


def test_a_program_containers_cannot_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(InvalidInput, match="containers do not see"):
        server_from_command(["serve"])
    with pytest.raises(InvalidInput, match="is not installed here"):
        server_from_command(["no-such-program"])
    for empty in ([], [""]):
        with pytest.raises(InvalidInput):
            server_from_command(empty)


def test_what_is_said_overrules_what_is_guessed() -> None:
    app = server_from_command(
        ["vllm", "serve", "", "--port", "9000"],
        app_name="mine",
        name="engine",
        port=7000,
        ready="GET /ok",
        image=gp.Image.debian_slim(),
        env={"A": "1"},
        snapshot=False,
        memory="1GiB",
        max_replicas=1,
    )
    server = only_server(app)
    assert (validated(app).name, server.name, server.port, server.ready.path) == (
        "mine",
        "engine",
        7000,
        "/ok",
    )
    assert (server.image.kind, server.env["A"], server.snapshot.enabled) == ("build", "1", False)
    assert (server.resources.memory_bytes, server.scaling.max_replicas) == (1 << 30, 1)
    assert server.command == ["vllm", "serve", "", "--port", "9000"]


def test_a_command_runs_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = only_server(server_from_command(["python3", "server.py"])).image
    assert image.workdir == str(tmp_path)
    assert [(shown.local_path, shown.remote_path) for shown in image.local_dirs] == [(str(tmp_path),) * 2]


def test_a_command_given_an_image_runs_where_the_image_says() -> None:
    server = only_server(server_from_command(["server"], image=gp.Image.from_directory("/usr")))
    assert server.image.workdir == "/"
    assert not server.image.local_dirs
