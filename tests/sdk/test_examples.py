"""Every example is a specification the control plane accepts; those of our own runner also run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glowplug.sdk.loader import load_app
from glowplug.types.spec import AppSpec

from .conftest import validated
from .runner_process import RunnerProcess

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def example_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOWPLUG_CACHE", "GLOWPLUG_VLLM_VENV", "GLOWPLUG_TORCH_VENV", "GLOWPLUG_MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMBEDDER_SALT", "salt")


def described(name: str) -> AppSpec:
    return validated(load_app(FOLDER / name))


def test_there_are_the_examples_we_promise() -> None:
    promised = {"chat_vllm.py", "embedder_cls.py", "hello_function.py", "static_files.py", "torch_server.py"}
    assert promised <= {file.name for file in EXAMPLES}


@pytest.mark.usefixtures("example_environment")
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_each_example_is_accepted_and_says_what_to_type(file: Path) -> None:
    assert validated(load_app(file)).servers
    docstring = file.read_text().split('"""')[1]
    assert f"glowplug deploy examples/{file.name}" in docstring


@pytest.mark.usefixtures("example_environment")
def test_the_demo_asks_for_the_capital_of_france_with_one_right_answer() -> None:
    server = described("chat_vllm.py").server("vllm")
    assert server is not None
    (canary,) = server.snapshot.canary
    assert canary.json_body["temperature"] == 0
    assert canary.json_body["max_tokens"] == 1
    assert canary.json_body["messages"][0]["content"] == "What is the capital of France?"
    assert server.command[:3] == ["vllm", "serve", "/models/smollm2"]
    assert server.volumes[0].read_only
    assert server.scaling.scaledown_window_s == 3
    assert server.env["HF_HUB_OFFLINE"] == "1"


@pytest.mark.usefixtures("example_environment")
def test_the_torch_server_holds_as_much_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOWPLUG_TORCH_MB", "200")
    server = described("torch_server.py").servers[0]
    assert server.command[-1] == "200"
    assert server.resources.memory_bytes > 200_000_000


def test_the_torch_servers_program_is_valid_python(monkeypatch: pytest.MonkeyPatch) -> None:
    compile(described("torch_server.py").servers[0].command[2], "program", "exec")


def test_the_embedder_embeds(container_library: Path) -> None:
    with RunnerProcess(container_library, FOLDER / "embedder_cls.py", "Embedder") as runner:
        runner.wait_ready().activate(EMBEDDER_SALT="salt")
        status, answer = runner.call("embed", texts=["hello", "world", "hello"])
        assert status == 200
        first, second, third = answer["result"]
        assert first == third != second
        assert len(first) == 64
        assert sum(x * x for x in first) == pytest.approx(1)
        signed = runner.call("signature", text="hello")
        runner.activate(restored=True, EMBEDDER_SALT="other")
        assert runner.call("signature", text="hello") != signed


def test_the_function_greets_and_counts(container_library: Path) -> None:
    with RunnerProcess(container_library, FOLDER / "hello_function.py", "greet", "function") as runner:
        runner.wait_ready().activate()
        assert runner.call("call", name="Ada") == (200, {"result": "Hello, Ada!"})


def test_importing_the_package_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import glowplug; "
        "print(sorted(name for name in set(sys.modules) - before if 'glowplug' in name))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "['glowplug']"


def test_describing_an_app_needs_the_standard_library_only(container_library: Path) -> None:
    program = (
        "import sys, pathlib; from glowplug.sdk.loader import load_app; "
        f"app = load_app(pathlib.Path({str(FOLDER / 'hello_function.py')!r})); "
        "print(app.to_spec()[0]['name'])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(container_library)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("hello", "")


def test_every_public_name_exists_and_no_other() -> None:
    import glowplug

    for name in glowplug._HOMES:
        assert getattr(glowplug, name) is not None
        assert name in dir(glowplug)
    with pytest.raises(AttributeError, match="no attribute 'Queue'"):
        _ = glowplug.Queue
