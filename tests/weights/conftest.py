"""One process with PyTorch, shared by the tests that need it."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.engines import ENGINE, require_engine

REPOSITORY = Path(__file__).resolve().parents[2]
ANSWER_S = 120.0


class TorchSide:
    """Asks ``torch_side.py``, in an engine's own environment, which has nothing of ours installed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [str(ENGINE / "bin" / "python"), "-P", str(Path(__file__).with_name("torch_side.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"do": do, "with": arguments}), file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_S)
        assert ready, f"{do} takes too long"
        answer = json.loads(self.process.stdout.readline())
        assert "value" in answer, answer["error"]
        return answer["value"]


@pytest.fixture(scope="session")
def torch_process() -> Iterator[TorchSide]:
    require_engine()
    side = TorchSide()
    yield side
    side.process.kill()
    side.process.communicate()


@pytest.fixture
def torch_side(torch_process: TorchSide) -> TorchSide:
    return torch_process
