from __future__ import annotations

from pathlib import Path

import pytest

from glowplug.image.task.turns import adding, collecting
from glowplug.types.errors import Conflict
from glowplug.types.paths import StateDir


def test_imports_run_beside_each_other_but_not_beside_garbage_collection(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    with adding(state), adding(state), pytest.raises(Conflict, match="being imported"), collecting(state):
        raise AssertionError("both at once")
    with collecting(state), pytest.raises(Conflict, match="Garbage"), adding(state):
        raise AssertionError("both at once")
    with collecting(state):
        pass
