"""docs/trust.md, cluster-state.md and security.md name a test for every claim: each of them must exist."""

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


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", page))
    assert len(named) >= 70
    missing = [
        f"{file}::{name}"
        for file, name in named
        if f"def {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_row_of_the_security_page_that_says_what_is_stopped_names_a_test() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    tables = [table for table in page.split("\n\n") if "| shown by |" in table.partition("\n")[0]]
    rows = [row for table in tables for row in table.strip().splitlines()[2:]]
    assert len(rows) >= 60
    assert [row for row in rows if ".py::test_" not in row.rstrip(" |").split(" | ")[-1]] == []
