"""A long measurement that may be interrupted: every sample is written down as soon as it is taken.

One JSON object a line in one file. A run that finds the file goes on where the last one ended; a run with
other settings is refused, because its samples would not be of one kind.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glowplug.types.errors import Conflict


@dataclass(frozen=True)
class Sample:
    """One start, as its caller saw it. ``case``: what was started how; ``disk_bytes``: read meanwhile."""

    case: str
    at: float
    first_token_s: float
    answered_s: float
    disk_bytes: int
    load_average: float
    record: dict[str, Any] | None = None


class SampleLog:
    """The samples so far, in the file ``path``. ``settings`` say what all of them have in common."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self.samples: list[Sample] = []
        self.notes: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self._write({"settings": settings})
            return
        first, *others = self._read()
        if first != {"settings": settings}:
            raise Conflict(
                f"{path} holds samples of another kind: {first.get('settings')}.",
                remedy="Move it away, or pass another --output.",
            )
        self.samples = [Sample(**line["sample"]) for line in others if "sample" in line]
        self.notes = [line["note"] for line in others if "note" in line]

    def count(self, case: str) -> int:
        """How many samples of ``case`` there are."""
        return sum(sample.case == case for sample in self.samples)

    def add(self, sample: Sample) -> None:
        """Keep one more."""
        self.samples.append(sample)
        self._write({"sample": asdict(sample)})

    def note(self, **facts: Any) -> None:
        """Keep something else that was measured in this run."""
        self.notes.append(facts)
        self._write({"note": facts})

    def noted(self, name: str) -> list[Any]:
        """Every fact of that name, oldest first."""
        return [note[name] for note in self.notes if name in note]

    def _read(self) -> list[dict[str, Any]]:
        """All whole lines; half of one, from a run that was killed, is cut off."""
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole)
        return [json.loads(line) for line in whole.splitlines()] or [{}]

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
