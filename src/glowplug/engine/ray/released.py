"""Machines that were let go, and are not to have an agent again: remembered across restarts of the engine."""

from __future__ import annotations

import json
from pathlib import Path

from glowplug.engine.record import write_atomically

_MOST = 10_000


class Released:
    """The ids of Ray nodes, in a file. An id never comes again, so none needs to be taken out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ids = self._read()

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._ids

    def add(self, node_id: str) -> None:
        """Remember it."""
        if node_id not in self._ids:
            self._ids = [*self._ids, node_id][-_MOST:]
            write_atomically(self._file, json.dumps(self._ids))

    def _read(self) -> list[str]:
        try:
            return [str(one) for one in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError):
            return []  # the worst that follows is an agent where one was: `cluster remove` ends it again
