"""From a task to the function that does it."""

from __future__ import annotations

from typing import Any

from glowplug.image.job import Job
from glowplug.image.task.compare import diff
from glowplug.image.task.importing import describe, import_image, resolve
from glowplug.image.task.keeping import collect_garbage, verify
from glowplug.image.task.moving import pull, push
from glowplug.types.errors import InvalidInput
from glowplug.types.image import (
    DescribeTask,
    DiffTask,
    GcTask,
    ImageTask,
    ImportTask,
    PullTask,
    PushTask,
    ResolveTask,
    VerifyTask,
)
from glowplug.types.paths import StateDir


def run_task(state: StateDir, task: ImageTask, job: Job) -> dict[str, Any]:
    """Do it; the result is JSON-ready. Raises GlowplugError or OSError."""
    match task:
        case ImportTask():
            return import_image(state, task, job)
        case ResolveTask():
            return resolve(task, job)
        case DescribeTask():
            return describe(state, task)
        case PushTask():
            return push(state, task, job)
        case PullTask():
            return pull(state, task, job)
        case VerifyTask():
            return verify(state, task, job)
        case GcTask():
            return collect_garbage(state, task, job)
        case DiffTask():
            return diff(state, task)
        case _:
            raise InvalidInput(
                f"The task {task.op} is done by the agent itself.", remedy="Use the agent's API."
            )
