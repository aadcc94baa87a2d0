"""Imports are found where they run when a module is imported, and in any file whatever."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.image.imports.python_source import imported_by


def found(source: str, module: str = "app.main", *, is_package: bool = False) -> list[str]:
    return list(imported_by(source.encode(), module, is_package=is_package))


def test_names_come_in_order_with_their_parents() -> None:
    assert found("import os\nimport a.b.c as d, e  # why\n") == ["os", "a", "a.b", "a.b.c", "e"]
    assert found("from a.b import c as d, e\n") == ["a", "a.b", "a.b.c", "a.b.e"]
    assert found("from a import (\n    b,  # one\n    c,\n)\n") == ["a", "a.b", "a.c"]
    assert found("from a import *\n") == ["a"]


def test_relative_names_are_those_of_the_package() -> None:
    assert found("from . import x\nfrom .y import z\n") == ["app", "app.x", "app", "app.y", "app.y.z"]
    assert found("from .y import z\n", "app", is_package=True) == ["app", "app.y", "app.y.z"]
    assert found("from ..z import q\n", "a.b.c") == ["a", "a.z", "a.z.q"]
    assert found("from ....z import q\n", "a.b.c") == []


def test_what_runs_later_or_never_does_not_count() -> None:
    source = """
import first
def later():
    import not_now
    def inner():
        import neither
class Holder:
    import at_once
    def method(self):
        import nor_this
if TYPE_CHECKING:
    import never
try:
    import perhaps
except ImportError:
    import otherwise
async def also_later():
    from x import y
import last
"""
    assert found(source) == ["first", "at_once", "perhaps", "otherwise", "last"]


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_will_do(source: bytes, is_package: bool) -> None:
    for name in imported_by(source, "a.b", is_package=is_package):
        assert "\n" not in name


@pytest.mark.parametrize("module", ["json", "asyncio", "email", "unittest", "logging"])
def test_it_finds_what_the_interpreter_loads(module: str) -> None:
    """Of the package itself: nothing that it loads is missed."""
    script = (
        f"import json, sys, {module}; found = sys.modules.items();"
        " print(json.dumps({name: getattr(one, '__file__', None) for name, one in found}))"
    )
    loaded = json.loads(
        subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, check=True).stdout
    )
    files = {name: Path(path) for name, path in loaded.items() if path and path.endswith(".py")}
    named = {
        name
        for importer, file in files.items()
        for name in imported_by(file.read_bytes(), importer, is_package=file.name == "__init__.py")
    }
    assert {name for name in files if name.startswith(f"{module}.")} <= named
    assert ast.parse(files[module].read_bytes())


@pytest.mark.parametrize(
    "source",
    [
        b"from a import (\n" * 60_000,  # none is closed: each would be looked for to the end of the file
        b"import " + b"a." * 100_000 + b"a\n",
        b"from " + b"a." * 50_000 + b"a import " + b"b, " * 50_000 + b"b\n",
        b"from a import (" + b"b, # )\n" * 100_000 + b")\n",
    ],
)
def test_a_hostile_source_takes_no_more_time_and_names_than_it_has_bytes(source: bytes) -> None:
    named = 0
    for name in imported_by(source, "a.b", is_package=False):
        named += len(name)
    assert named < 8 * len(source)
