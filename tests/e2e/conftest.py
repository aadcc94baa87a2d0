"""One running Glowplug per module, and per test an app that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.live import TOOLBOX, Live

_APP_FILE = """
import glowplug as gp

app = gp.App("toolbox")


@app.server(image={image}, **{options!r})
def web():
    return {command!r}
"""


@dataclass
class Deployed:
    """A deployed app with the one server ``web``."""

    live: Live
    name: str

    @property
    def path(self) -> str:
        """Where the router serves it."""
        return f"/{self.name}/web"

    def ask(self, path: str = "/") -> dict[str, Any]:
        """JSON of a GET to the server, which must succeed."""
        return dict(self.live.get(self.path + path))


@dataclass
class Apps:
    """Writes app files and deploys them; all are removed at the end of the test."""

    live: Live
    folder: Path
    names: set[str] = field(default_factory=set)

    def name(self, word: str) -> str:
        """A fresh name that will be cleaned up."""
        name = self.live.new_name(word)
        self.names.add(name)
        return name

    def write(
        self, *arguments: str, command: list[str] | None = None, image: str | None = None, **options: Any
    ) -> Path:
        """An app file for the toolbox server, or another command, with keywords of ``@app.server``.

        In the host's own files, or in the imported image of the name ``image``.
        """
        command = command or ["python3", "-c", TOOLBOX.read_text(), *arguments]
        # Equal servers share one snapshot, whatever their app is called: no two tests' servers are equal.
        env = {"GLOWPLUG_TEST": str(self.folder), **options.pop("env", {})}
        options = {"memory": "256MiB", "cpus": 1, "scaledown_window_s": 60, "env": env, **options}
        file = self.folder / f"app_{len(list(self.folder.iterdir()))}.py"
        shown = "gp.Image.host_python()" if image is None else f"gp.Image.from_name({image!r})"
        file.write_text(_APP_FILE.format(image=shown, options=options, command=command))
        return file

    def deploy(self, *arguments: str, word: str = "app", name: str | None = None, **options: Any) -> Deployed:
        """Write and deploy; ``name`` deploys a further version."""
        name = name or self.name(word)
        self.live.deploy(self.write(*arguments, **options), name)
        return Deployed(self.live, name)


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with Live() as live:
        failed_before = request.session.testsfailed
        yield live
        live.keeps_logs = request.session.testsfailed > failed_before


@pytest.fixture
def apps(live: Live, tmp_path: Path) -> Iterator[Apps]:
    apps = Apps(live, tmp_path)
    yield apps
    live.remove(apps.names)
