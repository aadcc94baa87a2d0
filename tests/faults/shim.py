"""Puts a stand-in before each container runtime, by the environment variables that name their programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.strike import Strike

from glowplug.runtime.runc import find_runc
from glowplug.runtime.runsc import find_runsc
from glowplug.types.paths import StateDir

REPOSITORY = Path(__file__).parents[2]
_SCRIPT = """#!/bin/sh
[ -e '{armed}' ] || exec '{real}' "$@"
export PYTHONPATH='{repository}' PYTHONDONTWRITEBYTECODE=1
exec '{python}' -m tests.faults.strike '{armed}' '{real}' "$@"
"""


class Shim:
    """The stand-ins, in ``folder``. :attr:`environment` is for the Glowplug that is to use them."""

    def __init__(self, folder: Path) -> None:
        self._armed = folder / "armed"
        self._struck = folder / "armed.struck"
        self.environment: dict[str, str] = {}
        for real, variable in ((find_runsc(), "GLOWPLUG_RUNSC"), (find_runc(), "GLOWPLUG_RUNC")):
            script = folder / real.name
            script.write_text(
                _SCRIPT.format(armed=self._armed, real=real, repository=REPOSITORY, python=sys.executable)
            )
            script.chmod(0o755)
            self.environment[variable] = str(script)

    def arm(self, strike: Strike, state: StateDir) -> None:
        """From now on, once."""
        self._struck.unlink(missing_ok=True)
        order = self._armed.with_suffix(".order")
        order.write_text(json.dumps({"strike": asdict(strike), "root": str(state.root)}))
        order.rename(self._armed)

    def disarm(self) -> None:
        """Whatever was not struck will not be."""
        self._armed.unlink(missing_ok=True)

    def struck(self) -> dict[str, Any] | None:
        """What was killed, once it was."""
        try:
            return dict(json.loads(self._struck.read_text()))
        except FileNotFoundError:
            return None
