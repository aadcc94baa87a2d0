"""Every quick engine of docs/engines.md starts with its recipe and comes back with the same answer."""

from __future__ import annotations

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.engines import QUICK, EngineCase, start_and_restore
from tests.e2e.live import Live

pytestmark = [pytest.mark.engine, pytest.mark.sandbox]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_an_engine_answers_the_same_after_a_restore(live: Live, apps: Apps, case: EngineCase) -> None:
    start_and_restore(live, apps, case)
