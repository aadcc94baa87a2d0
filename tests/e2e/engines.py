"""Real engines, installed outside the clone by `make engine`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug"))
ENGINE = CACHE / "engines" / "vllm-0.32.0"
MODEL = CACHE / "models" / "smollm2-135m-instruct"


def require_engine() -> None:
    """The engine is part of the product's promise: without it this test fails, unless told to be skipped."""
    missing = [str(path) for path in (ENGINE / "bin" / "vllm", MODEL) if not path.exists()]
    if not missing:
        return
    if os.environ.get("GLOWPLUG_SKIP_ENGINES") == "1":
        pytest.skip("GLOWPLUG_SKIP_ENGINES=1")
    pytest.fail(f"{missing[0]} is missing: `make engine` installs it; GLOWPLUG_SKIP_ENGINES=1 skips this.")
