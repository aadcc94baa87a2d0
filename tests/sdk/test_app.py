"""What users write becomes a specification the control plane accepts, or an error they can act on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glowplug as gp
from glowplug.sdk.app import App
from glowplug.sdk.options import DEFAULT_MAX_REPLICAS
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import CodeSpec, HttpCall, Scaling, ServerSpec

from .conftest import only_server, patient, validated


def serve(**keywords: Any) -> App:
    """An app with one server that has these keywords."""
    app = gp.App("chat")

    @app.server(**keywords)
    def vllm() -> list[str]:
        return ["vllm", "serve"]

    return app


def test_a_server_described_in_full_says_what_was_said(tmp_path: Path) -> None:
    app = gp.App("chat", folder=tmp_path)
    (tmp_path / "models").mkdir()

    @app.server(
        image=gp.Image.debian_slim(python="3.12").apt_install("curl").pip_install("vllm"),
        port=9000,
        ready="/health",
        snapshot=gp.Snapshot(warmup=['POST /v1/completions {"prompt": "hi"}'], canary=["GET /v1/models"]),
        gpu="H100:2",
        cpus=2,
        memory="4GiB",
        env={"A": "1"},
        secrets=[gp.Secret.from_dict({"TOKEN": "hush"})],
        volumes={"/models": gp.Volume("models", read_only=True)},
        min_replicas=1,
        max_replicas=8,
        buffer_replicas=1,
        scaledown_window_s=5,
        parked_window_s=7,
        parked_memory="swap",
        target_concurrency=4,
        startup_timeout_s=100,
        request_timeout_s=50,
        max_held_requests=10,
        runtime="runc",
        trusted=True,
        name="engine",
    )
    def vllm() -> list[str]:
        return ["vllm", "serve", "/models", "--port", "9000"]

    server = only_server(app)
    assert app.to_spec()[1] == {"TOKEN": "hush"}
    assert (server.name, server.port, server.ready.path) == ("engine", 9000, "/health")
    assert server.command == ["vllm", "serve", "/models", "--port", "9000"]
    assert server.resources.memory_bytes == 4 << 30
    assert server.resources.gpu_count == 2
    assert server.volumes[0].host_path == str(tmp_path / "models")
    assert server.secrets == ["TOKEN"]
    assert server.snapshot.warmup == [
        HttpCall(method="POST", path="/v1/completions", json_body={"prompt": "hi"})
    ]
    assert server.scaling == Scaling(
        min_replicas=1,
        max_replicas=8,
        buffer_replicas=1,
        scaledown_window_s=5,
        parked_window_s=7,
        parked_memory="swap",
        target_concurrency=4,
    )
    assert (server.startup_timeout_s, server.request_timeout_s, server.max_held_requests) == (100, 50, 10)
    assert (server.runtime, server.trusted) == ("runc", True)


def test_a_server_that_says_nothing_has_the_specifications_defaults() -> None:
    server = only_server(serve(recipe=None))
    plain = ServerSpec(name="vllm", image=server.image, command=["vllm", "serve"])
    assert server == plain
    assert server.image.kind == "host_python"


def test_the_default_that_the_sdk_repeats_is_the_specifications() -> None:
    assert Scaling().max_replicas == DEFAULT_MAX_REPLICAS


def test_asking_for_many_replicas_alone_raises_the_maximum() -> None:
    assert only_server(serve(min_replicas=9)).scaling.max_replicas == 9


def test_a_shell_line_is_run_by_a_shell() -> None:
    app = gp.App("chat")

    @app.server()
    def shell() -> str:
        return "exec serve --port $PORT"

    assert only_server(app).command == ["/bin/sh", "-c", "exec serve --port $PORT"]


def test_names_come_from_what_is_decorated() -> None:
    app = gp.App("chat")

    @app.cls()
    class MyEmbedder:
        @gp.method()
        def embed(self, text: str) -> str:
            return text

    @app.function()
    def say_hello() -> str:
        return "hello"

    @app.server()
    def vllm_0() -> list[str]:
        return ["vllm"]

    assert list(app._definitions) == ["my-embedder", "say-hello", "vllm-0"]
    assert vllm_0.url == "http://127.0.0.1:8080/chat/vllm-0"


MODULE_APP = gp.App("module")


@MODULE_APP.cls(snapshot=True)
class Embedder:
    @gp.method()
    def embed(self, text: str) -> int:
        return len(text)


def triple(value: int) -> int:
    return 3 * value


@MODULE_APP.function(max_replicas=2)
def double(value: int) -> int:
    return 2 * value


def test_classes_and_functions_are_served_by_the_runner() -> None:
    cls, function = validated(MODULE_APP).servers
    assert cls.command == [
        "python3", "-m", "glowplug.sdk.runner", "--module", "/app/test_app.py", "--target", "Embedder",
        "--kind", "cls", "--port", "8000",
    ]  # fmt: skip
    assert (cls.port, cls.ready.method, cls.ready.path) == (8000, "GET", "/.glowplug/ready")
    assert isinstance(cls.code, CodeSpec)
    assert cls.code.local_dir == str(Path(__file__).parent)
    assert (cls.code.module, cls.code.target, cls.code.target_kind) == ("test_app.py", "Embedder", "cls")
    assert cls.snapshot.canary == []
    assert "PYTHONPATH" not in cls.env
    assert function.code is not None
    assert (function.code.target, function.code.target_kind) == ("double", "function")


def test_decorated_things_stay_what_they_are() -> None:
    assert Embedder().embed("four") == 4
    assert double(4) == double.local(4) == 8
    assert double.__name__ == "double"


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "a keyword that does not exist": (lambda: serve(minimum_replicas=1), "Did you mean min_replicas"),
    "a port that is no port": (lambda: only_server(serve(port=0)), "from 1 to 65535"),
    "a port that is text": (lambda: only_server(serve(port="8000")), "whole number"),
    "a number beyond all bounds": (lambda: only_server(serve(cpus=10**400)), "up to 1024"),
    "true for a number": (lambda: only_server(serve(cpus=True)), "number"),
    "memory without a unit": (lambda: only_server(serve(memory="4")), '"4GiB"'),
    "memory with half a unit": (lambda: only_server(serve(memory="4G")), '"4GiB"'),
    "too little memory": (lambda: only_server(serve(memory="1MiB")), "at least 32 MiB"),
    "more replicas at least than at most": (
        lambda: only_server(serve(min_replicas=3, max_replicas=2)),
        "Raise max_replicas",
    ),
    "a gpu with a space": (lambda: only_server(serve(gpu="H 100")), 'gpu="H100"'),
    "a gpu snapshot without a gpu": (
        lambda: only_server(serve(snapshot=gp.Snapshot(gpu=True), runtime="runc")),
        'gpu="H100"',
    ),
    "a gpu snapshot in gVisor": (
        lambda: only_server(serve(snapshot=gp.Snapshot(gpu=True), gpu="H100")),
        'runtime="runc"',
    ),
    "a runtime that does not exist": (lambda: only_server(serve(runtime="docker")), 'runtime="runsc"'),
    "trust without a word": (lambda: only_server(serve(trusted="yes")), "True or False"),
    "trust that changes nothing": (
        lambda: only_server(serve(trusted=True, runtime="runsc")),
        "Leave one of them out",
    ),
    "a number in the environment": (lambda: only_server(serve(env={"PORT": 8000})), 'text: "1"'),
    "an environment that is a list": (lambda: only_server(serve(env=["A=1"])), '{"NAME"'),
    "a secret outside a list": (lambda: only_server(serve(secrets=gp.Secret.from_env("A"))), "secrets=["),
    "a secret's value as such": (lambda: only_server(serve(secrets=["hush"])), "Secret.from_env"),
    "a secret that is also in env": (
        lambda: only_server(serve(env={"A": "1"}, secrets=[gp.Secret.from_dict({"A": "2"})])),
        "one of the two",
    ),
    "a volume that is a string": (lambda: only_server(serve(volumes={"/models": "/srv"})), "gp.Volume"),
    "a volume over the system": (
        lambda: only_server(serve(volumes={"/proc/x": gp.Volume("/srv")})),
        "Choose a path",
    ),
    "a volume that climbs": (
        lambda: only_server(serve(volumes={"/a/../b": gp.Volume("/srv")})),
        'without ".."',
    ),
    "two volumes in one place": (
        lambda: only_server(serve(volumes={"/m": gp.Volume("/a"), "/m/": gp.Volume("/b")})),
        "its own path",
    ),
    "a relative folder that is not there": (
        lambda: only_server(serve(volumes={"/m": gp.Volume("no-such-folder")})),
        "Create it",
    ),
    "a snapshot that is text": (lambda: only_server(serve(snapshot="yes")), "gp.Snapshot"),
    "an image that is text": (lambda: only_server(serve(image="debian")), "gp.Image"),
    "a timeout that is not a number": (
        lambda: only_server(serve(startup_timeout_s=float("nan"))),
        "number above 0",
    ),
    "no parentheses": (lambda: gp.App("a").server(lambda: ["x"]), "@app.server(...)"),  # type: ignore[arg-type]
    "a class that is no class": (lambda: gp.App("a").cls()(3), "above a class"),  # type: ignore[type-var]
    "an app without servers": (lambda: gp.App("a").to_spec(), "@app.server"),
    "an app with a bad name": (lambda: gp.App("My App"), "lower-case"),
    "an app with a reserved name": (lambda: gp.App("metrics"), "other than"),
    "a server with a bad name": (lambda: serve(name="UPPER"), "lower-case"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_refused_with_a_remedy(mistake: str) -> None:
    make, remedy = MISTAKES[mistake]
    with pytest.raises(InvalidInput) as caught:
        make()
    assert remedy in caught.value.remedy


def test_a_mistake_found_late_names_the_file_and_the_server() -> None:
    with pytest.raises(InvalidInput, match=r"test_app\.py, server 'vllm': memory 'lots'") as caught:
        serve(memory="lots").to_spec()
    assert (caught.value.details["app"], caught.value.details["server"]) == ("chat", "vllm")


def test_two_servers_of_one_name_are_refused() -> None:
    app = serve()
    with pytest.raises(InvalidInput, match="two servers named 'vllm'"):
        app.function(name="vllm")(triple)


@pytest.mark.parametrize("command", [[], ["vllm", 8000], [""], None, {"a": 1}, "", ["a\0b"], "a\0b"])
def test_a_command_that_is_not_a_list_of_strings_is_refused(command: Any) -> None:
    app = gp.App("chat")
    app.server(name="vllm")(lambda: command)
    with pytest.raises(InvalidInput, match="server 'vllm'"):
        app.to_spec()


def test_a_command_function_that_raises_is_reported_as_the_users() -> None:
    app = gp.App("chat")

    @app.server()
    def vllm() -> list[str]:
        raise KeyError("MODEL")

    with pytest.raises(InvalidInput, match="raised KeyError: 'MODEL'"):
        app.to_spec()


def test_a_class_without_methods_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no method to call") as caught:

        @gp.App("a").cls()
        class Empty:
            def embed(self) -> None: ...

    assert "@gp.method()" in caught.value.remedy


def test_a_class_that_needs_arguments_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be made without arguments"):

        @gp.App("a").cls()
        class Needy:
            def __init__(self, model: str) -> None: ...

            @gp.method()
            def embed(self) -> None: ...


def test_a_class_inside_a_function_is_refused_because_the_runner_cannot_import_it() -> None:
    app = gp.App("a")

    @app.cls()
    class Local:
        @gp.method()
        def embed(self) -> None: ...

    with pytest.raises(InvalidInput, match="cannot find it") as caught:
        app.to_spec()
    assert "top level" in caught.value.remedy


def test_classes_need_a_python_the_runner_speaks() -> None:
    app = gp.App("a")
    app.function(image=gp.Image.debian_slim(python="3.9"), name="old")(triple)
    with pytest.raises(InvalidInput, match=r"not 3\.9"):
        app.to_spec()


def test_the_code_folder_cannot_be_mounted_over() -> None:
    app = gp.App("a")
    app.function(volumes={"/app/data": gp.Volume("/srv")})(triple)
    with pytest.raises(InvalidInput, match="mounted at /app"):
        app.to_spec()


def test_one_secret_with_two_values_is_refused() -> None:
    app = gp.App("a")
    for name, value in (("x", "1"), ("y", "2")):
        app.server(name=name, secrets=[gp.Secret.from_dict({"TOKEN": value})])(lambda: ["run"])
    with pytest.raises(InvalidInput, match="two different values"):
        app.to_spec()


text = st.text(max_size=20)
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.lists(text, max_size=2))
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "port": st.integers(0, 70_000) | anything,
    "ready": st.sampled_from(["/", "GET /x", 'PUT /x {"a": [1]}', "/a b"]) | anything,
    "gpu": st.from_regex(r"[A-Z0-9:-]{0,8}") | anything,
    "cpus": st.floats(0, 2000) | anything,
    "memory": st.from_regex(r"\d{1,3}(\.\d)? ?[KMGT]i?B") | anything,
    "env": st.dictionaries(text, text, max_size=2) | anything,
    "volumes": st.dictionaries(
        st.from_regex(r"/[a-z./]{0,9}") | text,
        st.builds(gp.Volume, st.from_regex(r"/[a-z]+")),
        max_size=2,
    ),
    "secrets": st.lists(
        st.builds(gp.Secret.from_dict, st.dictionaries(text, text, min_size=1, max_size=2)), max_size=2
    ),
    "min_replicas": st.integers(-1, 1001) | anything,
    "max_replicas": st.integers(0, 1001) | anything,
    "scaledown_window_s": st.floats() | anything,
    "parked_window_s": st.floats() | anything,
    "parked_memory": st.sampled_from(["keep", "swap"]) | anything,
    "target_concurrency": st.integers(0, 100_001) | anything,
    "startup_timeout_s": st.floats(-1, 100_000) | anything,
    "max_held_requests": st.integers(0, 1_000_001) | anything,
    "runtime": st.sampled_from(["auto", "runsc", "runc"]) | anything,
    "trusted": st.booleans() | anything,
    "name": st.from_regex(r"[a-z0-9-]{1,50}") | anything,
}


# A few at a time: were all drawn at once, one of them would nearly always be refused.
FEW_KEYWORDS = st.lists(
    st.sampled_from(sorted(KEYWORDS)).flatmap(lambda name: st.tuples(st.just(name), KEYWORDS[name])),
    max_size=3,
).map(dict)


@patient
@given(keywords=FEW_KEYWORDS)
def test_what_the_sdk_accepts_the_control_plane_accepts(keywords: dict[str, Any]) -> None:
    try:
        app = serve(**keywords)
        app.to_spec()
    except InvalidInput:
        return
    validated(app)
