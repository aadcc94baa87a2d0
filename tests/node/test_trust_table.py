"""docs/trust.md and docs/cluster-state.md name a test for every failure: each of them must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("page", "tests"), [("trust.md", 26), ("cluster-state.md", 6)])
def test_every_test_named_in_the_failure_tables_exists(page: str, tests: int) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert len(named) >= tests
    assert {name for name in named if f"def {name}(" not in sources} == set()
