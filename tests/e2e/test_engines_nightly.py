"""`make nightly`: all engines on both runtimes, with the figures of docs/engines.md. Many minutes."""

from __future__ import annotations

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.engines import CASES, EngineCase, start_and_restore
from tests.e2e.live import Live
from tests.runtime.conftest import require_runc

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.engine,
    pytest.mark.sandbox,
    pytest.mark.timeout(2400),
]

RESTORES = 5


@pytest.mark.parametrize("runtime", ["runsc", "runc"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_engine_answers_the_same_after_every_restore(
    live: Live, apps: Apps, case: EngineCase, runtime: str
) -> None:
    if runtime == "runc":
        require_runc()
    print(
        f"{case.name}, {runtime}: {start_and_restore(live, apps, case, restores=RESTORES, runtime=runtime)}"
    )
