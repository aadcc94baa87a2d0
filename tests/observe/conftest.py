"""Records to look at: made by a factory, so that each test names only what it is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.replica import Stage, StartPath

MakeRecord = Callable[..., ColdStartRecord]

COLD_STAGES_S = {
    Stage.ALLOCATE: 0.08,
    Stage.MOUNT: 0.02,
    Stage.HOST_INIT: 82.5,
    Stage.FIRST_ANSWER: 1.4,
}
RESTORED_STAGES_S = {
    Stage.ALLOCATE: 0.07,
    Stage.MOUNT: 0.01,
    Stage.HOST_INIT: 1.75,
    Stage.FIRST_ANSWER: 0.6,
}


@pytest.fixture
def make_record() -> MakeRecord:
    """``make_record(path=..., total_s=..)``: a plausible record, changed in the named fields."""

    def make(**changes: Any) -> ColdStartRecord:
        path = changes.get("path", StartPath.COLD)
        stages_s = COLD_STAGES_S if path is StartPath.COLD else RESTORED_STAGES_S
        fields: dict[str, Any] = {
            "id": "cs-1",
            "app": "chat",
            "server": "vllm",
            "deployment_id": "chat-v1",
            "replica_id": "chat-vllm-3f9a1c",
            "node": "local",
            "path": path,
            "outcome": Outcome.ANSWERED,
            "started_at": 1_700_000_000.0,
            "total_s": sum(stages_s.values()),
            "stages_s": stages_s,
        }
        return ColdStartRecord(**(fields | changes))

    return make
