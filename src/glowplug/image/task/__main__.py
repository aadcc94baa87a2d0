"""``python -m glowplug.image.task``: do one task; progress as JSON lines on stdout, the outcome in a file."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from glowplug.image.job import Job
from glowplug.image.task.run import run_task
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, ResourceExhausted, RuntimeFailed
from glowplug.types.image import TaskRequest
from glowplug.types.paths import StateDir

TASK_TIMEOUT_S = 24 * 3600.0  # whoever asked ends us long before
_REPORT_EVERY_S = 0.1
_NICENESS = 5  # replicas that serve come first


class _Reporter:
    """Prints progress, but not more often than anybody can read."""

    def __init__(self) -> None:
        self._last_s = 0.0

    def __call__(self, text: str, fraction: float | None) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= _REPORT_EVERY_S or fraction == 1.0:
            self._last_s = now_s
            sys.stdout.write(json.dumps({"text": text[:500], "fraction": fraction}) + "\n")
            sys.stdout.flush()


def main() -> int:
    """0 when the task is done; the answer file holds the result or the error."""
    parser = argparse.ArgumentParser(prog="python -m glowplug.image.task", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.nice(_NICENESS)
    clock = SystemClock()
    job = Job(_Reporter(), clock, clock.monotonic() + TASK_TIMEOUT_S)
    outcome = _outcome(StateDir(arguments.state), arguments.task, job)
    arguments.answer.write_text(json.dumps(outcome))
    return 1 if "error" in outcome else 0


def _outcome(state: StateDir, order: Path, job: Job) -> dict[str, Any]:
    try:
        request = TaskRequest.model_validate({"task": json.loads(order.read_bytes())})
        return {"result": run_task(state, request.task, job)}
    except GlowplugError as error:
        return {"error": error.to_dict()}
    except OSError as error:
        kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else RuntimeFailed
        what = f"{error.filename}: " if error.filename else ""
        problem = kind(
            f"The image task failed: {what}{error.strerror or error}.",
            remedy="Make room on the disk." if kind is ResourceExhausted else "Correct that and try again.",
        )
        return {"error": problem.to_dict()}


if __name__ == "__main__":
    sys.exit(main())
