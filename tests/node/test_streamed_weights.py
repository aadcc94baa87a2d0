"""Weights in no snapshot: it is smaller, and its copies answer the same, bit for bit, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.e2e.engines import ENGINE, require_engine
from tests.node.cases import case_server, served_class
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import require_runc
from tests.weights.files import write_shards

from glowplug.sdk.recipe_choice import choose_recipe

pytestmark = pytest.mark.sandbox

LAYERS, WIDTH = 25, 1024
WEIGHTS_BYTES = 4 * LAYERS * (WIDTH * WIDTH + WIDTH)


@pytest.fixture(params=[pytest.param("runsc", marks=pytest.mark.nightly), "runc"], autouse=True)
def runtime(request: pytest.FixtureRequest, agent: LiveAgent) -> str:
    if request.param == "runc":
        require_runc()
    agent.runtime = request.param
    return str(request.param)


def write_model(folder: Path, seed: int = 7) -> Path:
    """Five files of five layers."""
    noise = numpy.random.default_rng(seed)

    def layer(number: int) -> dict[str, Any]:
        weight = (noise.standard_normal((WIDTH, WIDTH), dtype=numpy.float32) / 32).tobytes()
        bias = noise.standard_normal(WIDTH, dtype=numpy.float32).tobytes()
        return {
            f"{number}.weight": ("F32", (WIDTH, WIDTH), weight),
            f"{number}.bias": ("F32", (WIDTH,), bias),
        }

    shards: list[dict[str, Any]] = [{} for _ in range(5)]
    for number in range(LAYERS):
        shards[number // 5] |= layer(number)
    return write_shards(folder, shards)


def streamed(agent: LiveAgent, model: Path, image: dict[str, Any], weights: str) -> dict[str, Any]:
    return served_class(
        agent,
        "streamed.py",
        "Streamed",
        name=f"streamed-{weights}-{agent.runtime}",
        image=image,
        volumes=[{"host_path": str(model), "mount_path": "/models", "read_only": True}],
        resources={"memory_bytes": 2 << 30, "cpus": 2},
        snapshot={"weights": weights, "warmup": [{"method": "POST", "path": "/answer", "json_body": {}}]},
        startup_timeout_s=120,
    )


def answers(agent: LiveAgent, view: dict[str, Any]) -> list[str]:
    return [agent.ask(view, "/answer", body={"start": start})["result"] for start in (0, 1)]


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_streamed_weights_are_not_in_the_snapshot_and_its_copies_answer_the_same(
    agent: LiveAgent, tmp_path: Path
) -> None:
    require_engine()
    model = write_model(tmp_path / "model")
    image = {**agent.image, "venv": str(ENGINE)}
    options = {"image_id": agent.build(image)}
    sizes, told = {}, {}
    for weights in ("keep", "stream"):
        server = streamed(agent, model, image, weights)
        first = agent.start(server, **options)
        assert first["path"] == "cold"
        told[weights] = answers(agent, first)
        snapshot = agent.captured(first)
        assert snapshot["status"] == "good", snapshot
        sizes[weights] = snapshot["bytes"]
        for _ in range(2):
            copy = agent.start(server, **options)
            assert (copy["path"], copy["fallback_reason"]) == ("cpu_snapshot", None)
            assert answers(agent, copy) == told[weights]
        assert ("glowplug.weights: streamed 0.10 GB" in agent.log(copy["id"])) is (weights == "stream")
        agent.calm_down()
    assert told["keep"] == told["stream"]
    print(f"{agent.runtime}: {sizes}")
    assert sizes["keep"] - sizes["stream"] > 0.9 * WEIGHTS_BYTES, sizes

    write_model(tmp_path / "model", seed=8)
    changed = agent.start(server, **options)
    assert changed["path"] == "cold"
    assert "is not what the captured replica had" in changed["fallback_reason"]
    assert answers(agent, changed) != told["stream"]


def test_a_server_that_streams_weights_and_has_loaded_none_is_not_captured(agent: LiveAgent) -> None:
    view = agent.start(case_server(agent, "no-weights", snapshot={"weights": "stream"}))
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "no process of it has loaded any" in snapshot["reason"]


SHOWS_PLUGINS = """
import http.server, importlib.metadata, json

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = importlib.metadata.entry_points(group="vllm.general_plugins")
        body = json.dumps([entry.value for entry in found]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def test_vllm_in_a_container_finds_the_loader_by_what_its_recipe_sets(agent: LiveAgent) -> None:
    recipe = choose_recipe(["vllm", "serve", "/m", "--load-format=glowplug"], "auto")
    assert recipe is not None
    (variant,) = [one for one in recipe.variants if one.flag == "--load-format"]
    view = agent.start(agent.server("python3", "-c", SHOWS_PLUGINS, env=dict(variant.env)))
    assert agent.ask(view) == ["glowplug.weights.vllm_loader:register"]
