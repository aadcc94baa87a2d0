"""Runs an image task in a process of its own, for the agent: hostile archives and layers stay out of it.

The process dies with us, and whatever it started with it (see :mod:`glowplug.image.command`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glowplug.image.command import stream
from glowplug.image.job import Job
from glowplug.types.errors import GlowplugError, RuntimeFailed
from glowplug.types.image import ImageTask
from glowplug.types.paths import StateDir


@dataclass(frozen=True)
class TaskRunner:
    """``environ`` tells how this machine reaches registries and the region."""

    state: StateDir
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self, task: ImageTask, job: Job) -> dict[str, Any]:
        """The task's result. Raises what it raised, or what ``job.check`` raises."""
        self.state.run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="image-task-", dir=self.state.run) as folder:
            order, answer = Path(folder, "task.json"), Path(folder, "answer.json")
            order.write_text(task.model_dump_json())
            ended = stream(
                [
                    sys.executable, "-m", "glowplug.image.task",
                    "--state", str(self.state.root), "--task", str(order), "--answer", str(answer),
                ],
                job,
                stage=f"working on image task {task.op}",
                environment={**self.environ, "TMPDIR": folder},
                on_line=lambda line: _report(line, job),
            )  # fmt: skip
            if not answer.exists():
                raise RuntimeFailed(
                    f"The image task {task.op} ended without a result (exit code {ended.exit_code}).",
                    remedy="Its last lines are in the details.",
                    output="\n".join(ended.last_lines),
                )
            outcome = json.loads(answer.read_bytes())
        if "error" in outcome:
            raise GlowplugError.from_dict(outcome["error"])
        result: dict[str, Any] = outcome["result"]
        return result


def _report(line: str, job: Job) -> None:
    try:
        said = json.loads(line)
        text, fraction = str(said["text"]), said["fraction"]
    except (ValueError, KeyError, TypeError):  # a warning of some library: shown as it is
        text, fraction = line, None
    job.say(text, fraction if isinstance(fraction, int | float) else None)
