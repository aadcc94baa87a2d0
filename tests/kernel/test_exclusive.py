"""One holder at a time, whom those who only look do not keep out."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from glowplug.kernel import exclusive as module
from glowplug.kernel.exclusive import exclusive
from glowplug.types.errors import Conflict

TAKEN = Conflict("Another one runs.", remedy="Use it.")


def test_a_second_holder_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with exclusive(file, TAKEN), pytest.raises(Conflict, match="Another one runs"), exclusive(file, TAKEN):
        pass
    with exclusive(file, TAKEN):
        pass


def test_who_only_looks_stops_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)
    file = tmp_path / "lock"
    looking = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(looking, fcntl.LOCK_SH)
    looked = threading.Timer(0.1, lambda: os.close(looking))
    looked.start()
    with exclusive(file, TAKEN):
        pass
    looked.join()
