"""App files to describe, and the library as containers see it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import glowplug
from glowplug.sdk.app import App
from glowplug.types.spec import AppSpec, ServerSpec

from .runner_process import RunnerProcess

PACKAGE = Path(glowplug.__file__).parent
# docs/architecture.md: what of ours a container holds.
IN_CONTAINERS = ("__init__.py", "hooks.py", "sdk", "types/__init__.py", "types/errors.py", "types/ids.py")

# Property tests here may share two cores with benchmarks: how long one example takes proves nothing.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WriteApp = Callable[..., Path]
StartRunner = Callable[..., RunnerProcess]


@pytest.fixture(scope="session")
def container_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exactly those of our files that are bound into a container."""
    library = tmp_path_factory.mktemp("library")
    for name in IN_CONTAINERS:
        source, target = PACKAGE / name, library / "glowplug" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return library


@pytest.fixture
def write_app(tmp_path: Path) -> WriteApp:
    """Write an app file (dedented) into a folder of its own."""

    def write(source: str, name: str = "user_app.py") -> Path:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        file = folder / name
        file.write_text(textwrap.dedent(source))
        return file

    return write


@pytest.fixture
def start_runner(container_library: Path, write_app: WriteApp) -> StartRunner:
    """A runner for an app's source; ``with start_runner(...) as runner``."""

    def start(source: str, target: str, kind: str = "cls", **options: Any) -> RunnerProcess:
        return RunnerProcess(container_library, write_app(source), target, kind, **options)

    return start


def validated(app: App) -> AppSpec:
    """The app's specification as the control plane reads it: through JSON, strictly."""
    return AppSpec.model_validate(json.loads(json.dumps(app.to_spec()[0])))


def only_server(app: App) -> ServerSpec:
    """The one server of an app."""
    (server,) = validated(app).servers
    return server
