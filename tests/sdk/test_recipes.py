"""A command is recognised as an engine, and what its user left out is filled in."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glowplug as gp
from glowplug.sdk import recipe_table
from glowplug.sdk.loader import server_from_command
from glowplug.sdk.recipe_choice import choose_recipe
from glowplug.sdk.recipe_table import BUILT_IN, known_recipes
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import ServerSpec

from .conftest import only_server, patient

FOLDER = gp.Image.from_directory("/usr")
MINE = gp.Recipe("mine", "Mine", commands=("env",), ready="/mine")
A_STRING = "not a recipe"


def served(command: str, **keywords: Any) -> ServerSpec:
    """The server that ``glowplug run`` makes of a command."""
    return only_server(server_from_command(command.split(), **{"image": FOLDER, **keywords}))


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("vllm serve /m", "vllm"),
        ("/opt/venv/bin/vllm serve /m", "vllm"),
        ("python -m vllm.entrypoints.openai.api_server", "vllm"),
        ("/v/bin/python3.11 -u -m vllm.entrypoints.openai.api_server", "vllm"),
        ("python -m sglang.launch_server", "sglang"),
        ("llama-server -m /m.gguf", "llama.cpp"),
        ("uvicorn main:app", "uvicorn"),
        ("fastapi run main.py", "fastapi"),
        ("node server.js", "node"),
        ("npm start", "node"),
        ("vllm bench", None),
        ("vllm", None),
        ("node", None),
        ("python -m http.server", None),
        ("python serve.py vllm serve", None),
        ("sh -c vllm", None),
    ],
)
def test_an_engine_is_recognised_by_its_command(command: str, recipe: str | None) -> None:
    chosen = choose_recipe(command.split(), "auto")
    assert (chosen.name if chosen else None) == recipe


@patient
@given(command=st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_any_command_can_be_looked_at(command: list[str]) -> None:
    for recipe in BUILT_IN:
        recipe.recognises(command)
        recipe.models_of(command)
        assert 1 <= recipe.port_of(command) <= 65535


def test_every_recipe_is_a_valid_server_and_knows_its_own_commands() -> None:
    for recipe in BUILT_IN:
        for pattern in recipe.commands:
            command = [*pattern.replace("*", "x").split(), "--host", "0.0.0.0"]
            assert choose_recipe(command, "auto") is recipe
            server = served(" ".join(command))
            assert (server.port, server.ready.path) == (recipe.port, recipe.ready)


def test_what_a_user_left_out_is_filled_in() -> None:
    server = served("vllm serve /m --port 9000")
    assert (server.port, server.ready.path, server.startup_timeout_s) == (9000, "/health", 1800)
    assert server.env["VLLM_RPC_BASE_PATH"] == "/tmp"
    assert [call.path for call in server.snapshot.warmup] == ["/v1/completions"]
    assert server.snapshot.before_snapshot is None


def test_what_a_user_says_comes_first() -> None:
    server = served(
        "vllm serve /m --port 9000",
        port=1234,
        ready="/ok",
        env={"TMPDIR": "/elsewhere"},
        snapshot=gp.Snapshot(canary=["GET /version"]),
        memory="1GiB",
        cpus=1,
        startup_timeout_s=5,
    )
    assert (server.port, server.ready.path, server.startup_timeout_s) == (1234, "/ok", 5)
    assert (server.resources.memory_bytes, server.resources.cpus) == (1 << 30, 1)
    assert (server.env["TMPDIR"], server.env["VLLM_HOST_IP"]) == ("/elsewhere", "127.0.0.1")
    assert [call.path for call in server.snapshot.canary] == ["/version"]
    assert [call.path for call in server.snapshot.warmup] == ["/v1/completions"]


def test_no_snapshot_stays_none() -> None:
    assert not served("vllm serve /m", snapshot=False).snapshot.enabled


def test_without_a_recipe_nothing_is_filled_in() -> None:
    for none in (None, "none"):
        server = served("vllm serve /m --port 9000", recipe=none)
        assert (server.port, server.ready.path, server.env) == (9000, "/", {})


def test_a_recipe_can_be_named_for_a_command_that_is_not_recognised() -> None:
    assert served("my-wrapper --host 0.0.0.0", recipe="sglang").port == 30000


def test_an_unknown_recipe_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(InvalidInput, match="no recipe 'vlm'") as caught:
        served("vllm serve /m", recipe="vlm")
    assert "sglang" in caught.value.remedy


def test_a_server_of_an_app_file_gets_its_recipe_too() -> None:
    app = gp.App("chat")

    @app.server(image=FOLDER, env={"A": "1"})
    def engine() -> list[str]:
        return ["vllm", "serve", "/m", "--port", "9000"]

    @app.server(image=FOLDER)
    def other() -> str:
        return "vllm serve /m"

    spec, _ = app.to_spec()
    assert [server["port"] for server in spec["servers"]] == [9000, 8000]
    assert spec["servers"][0]["env"]["A"] == "1"
    (applied,) = app.recipes().values()
    assert str(applied).startswith("Recipe vllm: port 9000, ready /health, cpus 2, memory 6GiB")
    assert "VLLM_HOST_IP=127.0.0.1" in str(applied)


def test_an_embedding_model_is_warmed_up_with_texts() -> None:
    for flags in ("--runner pooling", "--runner=pooling", "--task embed"):
        assert served(f"vllm serve /m {flags}").snapshot.warmup[0].path == "/v1/embeddings"
    assert served("vllm serve /m --runner generate").snapshot.warmup[0].path == "/v1/completions"


def test_an_engine_that_can_sleep_is_put_to_sleep_around_a_snapshot() -> None:
    server = served("vllm serve /m --enable-sleep-mode")
    before, after = server.snapshot.before_snapshot, server.snapshot.after_restore
    assert before is not None
    assert before.http is not None
    assert before.http.path == "/sleep?level=1"
    assert after is not None
    assert after.http is not None
    assert after.http.path == "/wake_up"
    assert server.env["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    "command", ["vllm serve /m --host 127.0.0.1", "python -m sglang.launch_server", "uvicorn m:a --host=::1"]
)
def test_a_server_that_nobody_could_reach_is_refused(command: str) -> None:
    with pytest.raises(InvalidInput, match="inside its container") as caught:
        served(command)
    assert "--host 0.0.0.0" in caught.value.remedy


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model's folder with 100 MiB of weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    with (folder / "weights").open("wb") as file:
        file.truncate(100 << 20)
    return folder


def test_a_model_on_this_machine_is_shown_and_counted(weights: Path) -> None:
    server = served(f"vllm serve {weights}", image=gp.Image.host_python())
    (volume,) = server.volumes
    assert (volume.host_path, volume.mount_path, volume.read_only) == (str(weights), str(weights), True)
    assert server.resources.memory_bytes == (6 << 30) + (128 << 20)


def test_of_a_model_that_is_a_file_the_folder_is_shown(weights: Path) -> None:
    server = served(f"llama-server -m {weights / 'weights'}", image=gp.Image.host_python())
    (volume,) = server.volumes
    assert (volume.host_path, volume.mount_path, volume.read_only) == (str(weights), str(weights), True)
    assert server.resources.memory_bytes == (2 << 30) + (128 << 20)


def test_a_model_that_is_shown_already_is_not_shown_twice(weights: Path) -> None:
    volumes = {str(weights.parent): gp.Volume(weights.parent)}
    server = served(f"vllm serve {weights}", image=gp.Image.host_python(), volumes=volumes)
    assert [volume.read_only for volume in server.volumes] == [False]


def test_in_an_image_a_path_means_one_inside(weights: Path) -> None:
    assert served(f"vllm serve {weights}").volumes == []


def test_a_model_in_the_hub_cache_is_read_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0").write_bytes(bytes(1000))
    server = served("vllm serve org/tiny", image=gp.Image.host_python())
    assert [volume.mount_path for volume in server.volumes] == [str(blobs.parent)]
    assert (server.env["HF_HUB_CACHE"], server.env["HF_HUB_OFFLINE"]) == (str(tmp_path), "1")
    absent = served("vllm serve org/other", image=gp.Image.host_python())
    assert (absent.volumes, "HF_HUB_OFFLINE" in absent.env) == ([], False)


def test_another_package_adds_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", f"{__name__}:MINE", recipe_table.ENTRY_POINTS)
    monkeypatch.setattr(recipe_table, "entry_points", lambda group: [entry])
    assert known_recipes()[0] is MINE
    assert served("env true").ready.path == "/mine"


@pytest.mark.parametrize("name", ["ABSENT", "A_STRING"])
def test_a_broken_recipe_of_another_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", f"{__name__}:{name}", recipe_table.ENTRY_POINTS)
    monkeypatch.setattr(recipe_table, "entry_points", lambda group: [entry])
    with pytest.raises(InvalidInput, match=name):
        known_recipes()
