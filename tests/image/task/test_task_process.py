"""Tasks in the process that the agent starts for them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from glowplug.image.job import Job
from glowplug.image.task_runner import TaskRunner
from glowplug.types.clock import SystemClock
from glowplug.types.errors import InvalidInput, NotFound, Unavailable
from glowplug.types.image import DescribeTask, ImportTask, MountTask, PushTask
from glowplug.types.paths import StateDir

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="tasks run in namespaces of their own: needs root")


@pytest.fixture
def runner(tmp_path: Path) -> TaskRunner:
    return TaskRunner(StateDir(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root" / "bin").mkdir(parents=True)
    (tmp_path / "root" / "bin" / "python3").write_bytes(b"#!")
    (tmp_path / "root" / "bin" / "python3").chmod(0o755)
    return tmp_path / "root"


def job(cancelled: threading.Event | None = None, said: list[str] | None = None) -> Job:
    clock = SystemClock()

    def progress(text: str, _fraction: float | None) -> None:
        if said is not None:
            said.append(text)

    return Job(progress, clock, clock.monotonic() + 180, cancelled or threading.Event())


def test_a_result_comes_back_whole(runner: TaskRunner, folder: Path) -> None:
    result = runner.run(ImportTask(source=str(folder), name="a:1"), job())
    assert (result["entries"], result["content_bytes"]) == (3, 2)
    described = runner.run(DescribeTask(image="a:1"), job())
    assert (described["digest"], described["python"]) == (result["digest"], "/bin/python3")


def test_an_error_comes_back_as_what_it_was(runner: TaskRunner) -> None:
    with pytest.raises(NotFound) as caught:
        runner.run(DescribeTask(image="absent"), job())
    assert "absent" in str(caught.value)
    assert caught.value.remedy


def test_without_a_region_a_push_says_how_to_get_one(
    runner: TaskRunner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOWPLUG_REGION", raising=False)
    runner = TaskRunner(runner.state, {k: v for k, v in os.environ.items() if k != "GLOWPLUG_REGION"})
    runner.run(ImportTask(source=str(folder), name="a:1"), job())
    with pytest.raises(InvalidInput) as caught:
        runner.run(PushTask(image="a:1"), job())
    assert "--region" in caught.value.remedy


def test_a_cancelled_task_ends_and_leaves_nothing(runner: TaskRunner, folder: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Unavailable, match="cancelled"):
        runner.run(ImportTask(source=str(folder)), job(cancelled))
    assert not list(runner.state.run.glob("image-task-*"))


def test_what_the_agent_does_itself_is_refused(runner: TaskRunner) -> None:
    with pytest.raises(InvalidInput, match="agent itself"):
        runner.run(MountTask(image="a:1"), job())


def test_a_name_that_cannot_be_is_refused_before_anything_is_read(runner: TaskRunner, folder: Path) -> None:
    said: list[str] = []
    with pytest.raises(InvalidInput, match="not a name"):
        runner.run(ImportTask(source=str(folder), name="../evil"), job(said=said))
    assert said == []
