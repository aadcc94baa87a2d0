"""Real vLLM loads its weights through our loader, found as in a container of ours, and answers right."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.e2e.engines import ENGINE, MODEL, require_engine
from tests.weights.conftest import REPOSITORY

from glowplug.sdk.recipe_choice import choose_recipe

pytestmark = [pytest.mark.nightly, pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = """
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    engine = LLM(
        {model!r}, load_format="glowplug",
        model_loader_extra_config={{"threads": 3, "ahead_bytes": 64 << 20}},
        enforce_eager=True, max_model_len=256, max_num_seqs=2, kv_cache_memory_bytes=64 << 20,
    )
    (answer,) = engine.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=4))
    print("ANSWER", answer.outputs[0].text)
"""


def test_vllm_answers_with_weights_that_our_loader_read(tmp_path: Path) -> None:
    require_engine()
    recipe = choose_recipe(["vllm", "serve", "/m", "--load-format", "glowplug"], "auto")
    assert recipe is not None
    (variant,) = [one for one in recipe.variants if one.flag == "--load-format"]
    plugin = variant.env["PYTHONPATH"].replace("/.glowplug/lib", str(REPOSITORY / "src"))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(model=str(MODEL)))
    done = subprocess.run(
        [str(ENGINE / "bin" / "python"), str(program)],
        env={
            "PATH": f"{ENGINE}/bin:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{REPOSITORY / 'src'}:{plugin}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "ANSWER  Paris" in done.stdout
    assert "with load format `glowplug`" in done.stdout
