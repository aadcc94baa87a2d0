"""docs/trust.md names a test for every failure: each of them must exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_named_in_the_failure_tables_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/trust.md").read_text(encoding="utf-8")))
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert len(named) > 25
    assert {name for name in named if f"def {name}(" not in sources} == set()
