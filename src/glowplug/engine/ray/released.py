"""Machines that were let go, and are not to have an agent: remembered across restarts of the engine."""

from __future__ import annotations

import json
from pathlib import Path

from glowplug.engine.record import write_atomically

_MOST = 10_000


class Released:
    """The ids of Ray nodes, in a file, and whether they may be taken again when more machines are wanted.

    Those that were removed by hand may not. An id never comes again, so none of these needs to be taken out.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._until_wanted = self._read()

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._until_wanted

    def is_until_wanted(self, node_id: str) -> bool:
        """Whether it was let go because nobody needed it."""
        return self._until_wanted.get(node_id, False)

    def add(self, node_id: str, *, until_wanted: bool = False) -> None:
        """Remember it. What was removed by hand stays so."""
        if node_id not in self._until_wanted:
            self._until_wanted[node_id] = until_wanted
            self._write()

    def take_again(self, node_id: str) -> None:
        """It is to have an agent again."""
        del self._until_wanted[node_id]
        self._write()

    def _write(self) -> None:
        newest = dict(list(self._until_wanted.items())[-_MOST:])
        write_atomically(self._file, json.dumps(newest))

    def _read(self) -> dict[str, bool]:
        try:
            told = json.loads(self._file.read_text())
            if isinstance(told, list):  # as versions wrote it that let go by hand only
                return dict.fromkeys(map(str, told), False)
            return {str(one): bool(wanted) for one, wanted in told.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # the worst that follows is an agent where one was: `cluster remove` ends it again
