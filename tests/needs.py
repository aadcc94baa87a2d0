"""What tests need of the machine: without it they are skipped, but in CI they fail.

``.ci/run`` installs everything first, so what is missing then was forgotten, and a skip would hide that.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """End the test: skipped, or failed in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI is to have what this test needs: {what}", pytrace=False)
    pytest.skip(f"needs {what}")


def root(what_for: str) -> None:
    """End the test unless it runs as root."""
    if os.geteuid() != 0:
        lacking(f"root, {what_for}")


def programs(*names: str, path: str | None = None) -> None:
    """End the test unless these can be run; looked for in ``path``, else where everybody looks."""
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        lacking(", ".join(missing))
